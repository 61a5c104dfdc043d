"""An HTTP proxy on a Unix socket, through which a server without a network reaches package registries."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import requests
from urllib3.exceptions import HTTPError

PATIENCE_S = 60


class Handler(BaseHTTPRequestHandler):
    """Forwards GET, which apt-get uses, and CONNECT, which pip uses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        try:
            response = requests.get(self.path, headers=headers, timeout=PATIENCE_S, stream=True)
            body = response.raw.read(decode_content=False)
        except (requests.RequestException, HTTPError):
            self.send_error(502)
            return
        self.send_response(response.status_code)
        for name in ("Content-Type", "Content-Range", "Last-Modified", "ETag"):
            if name in response.headers:
                self.send_header(name, response.headers[name])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        try:
            upstream = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        except OSError:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with upstream, suppress(OSError):
            self._relay(upstream)

    def _relay(self, upstream: socket.socket) -> None:
        client = self.connection
        other = {client: upstream, upstream: client}
        while ready := select.select([client, upstream], [], [], PATIENCE_S)[0]:
            for end in ready:
                if not (data := end.recv(65_536)):
                    return
                other[end].sendall(data)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def running_package_proxy(path: Path) -> Iterator[None]:
    """Run the proxy in threads of this process."""
    with ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
