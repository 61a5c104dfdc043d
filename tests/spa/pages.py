"""The Vue app as deployed: built once, and served on another origin."""

import http.server
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from script.demo import APP as FOLDER
from tests.helpers.node import install, run

ROOT = Path(__file__).resolve().parent.parent.parent
APP = ROOT / FOLDER
# The package that it uses.
CLIENT = ROOT / "clients/javascript"
# The URL of the API in the build: examples/vue-spa/.env.
BUILT_FOR = "http://127.0.0.1:5000"


class Pages:
    """The app's files, configured for the API at `api_url`."""

    def __init__(self, dist: Path, origin: str) -> None:
        self.dist = dist
        self.origin = origin
        self.api_url = BUILT_FOR

    def file(self, path: str) -> tuple[bytes, str]:
        """Return a file's content and type. Every other path is a page of the app's router."""
        found = (self.dist / path.partition("?")[0].lstrip("/")).resolve()
        if found.is_relative_to(self.dist) and found.is_file() and found.name != "index.html":
            kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
            return found.read_bytes(), kinds[found.suffix]
        # As the app's README says, the API's URL is only in this file.
        page = (self.dist / "index.html").read_text(encoding="utf-8")
        return page.replace(BUILT_FOR, self.api_url).encode(), "text/html; charset=utf-8"


@contextmanager
def serving(dist: Path, host: str = "127.0.0.1", certificate: Path | None = None) -> Iterator[Pages]:
    """Serve the built app, over https if there is a certificate."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, kind = pages.file(self.path)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
            scheme = "https"
        pages = Pages(dist.resolve(), f"{scheme}://{host}:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield pages
        server.shutdown()


def build(target: Path, spotify_url: str) -> None:
    """Build the app into a folder, as `npm run build` does. `script/lint` checks the types.

    `spotify_url` is the sandbox.
    """
    install(APP)
    environ = {
        **os.environ,
        "VITE_API_URL": BUILT_FOR,
        "VITE_IMAGE_HOSTS": spotify_url,
        "VITE_SPOTIFY_DASHBOARD_URL": f"{spotify_url}/dashboard",
    }
    run(APP, "npx", "vite", "build", "--outDir", str(target), "--logLevel", "warn", environ=environ)
