"""A small threaded HTTP/1.1 server that keeps connections open and logs nothing.

Werkzeug's handler closes every connection after one response, and apps that keep connections to Spotify
open need to be tested with that. Nothing is logged, because request lines contain codes and states.
"""

from __future__ import annotations

import io
import re
import socket
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

# Seconds.
IDLE_S = 75
MAX_BODY_BYTES = 8 * 1024 * 1024
_WITHOUT_BODY = (204, 304)
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,6}")


class Handler(WSGIRequestHandler):
    """Handles one request after another on a connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    # Send head and body in one packet, without waiting for acknowledgments.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log(self, _type: str, _message: str, *_args: Any) -> None:
        """Log nothing."""

    def run_wsgi(self) -> None:
        """Respond to one request, and keep the connection open unless something went wrong."""
        body = self._read_body()
        if body is None:
            self.close_connection = True
            return
        environ = self.make_environ()
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input"] = io.BytesIO(body)
        response = _Response(self)
        try:
            chunks = self.server.app(environ, response.start)
            try:
                response.send(chunks)
            finally:
                if hasattr(chunks, "close"):
                    chunks.close()
        except ConnectionError:
            # Either the caller is gone, or a fault drops the connection.
            self.close_connection = True
        except Exception:  # noqa: BLE001 - the caller must not wait for a response that never comes
            self.close_connection = True
            traceback.print_exc(file=sys.stderr)

    def _read_body(self) -> bytes | None:
        """Read the whole body, so that the next request starts where it should; None if rejected."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            return self._read_chunks()
        if not length.isdigit():
            self.send_error(400)
        elif int(length) > MAX_BODY_BYTES:
            self.send_error(413)
        else:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.wfile.flush()
            return self.rfile.read(int(length))
        return None

    def _read_chunks(self) -> bytes | None:
        """Read a body in chunks (RFC 9112 section 7.1); None if rejected."""
        body = b""
        while _CHUNK_SIZE.fullmatch(line := self.rfile.readline(20).rstrip()):
            if not (size := int(line, 16)):
                while self.rfile.readline().strip():
                    pass  # trailers
                return body
            body += self.rfile.read(size)
            self.rfile.readline()
            if len(body) > MAX_BODY_BYTES:
                break
        self.send_error(400)
        return None


class _Response:
    """A response being sent. Its head waits for the first bytes of its body."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._status = ""
        self._headers: list[tuple[str, str]] = []

    def start(self, status: str, headers: list[tuple[str, str]], _error: Any = None, /) -> Any:
        self._status, self._headers = status, headers

    def send(self, chunks: Iterable[bytes]) -> None:
        """Send head and body. A body without a length is sent in chunks as it arrives."""
        parts = iter(chunks)
        first = next(parts, b"")
        code, _, reason = self._status.partition(" ")
        bodiless = int(code) in _WITHOUT_BODY or self._handler.command == "HEAD"
        names = {name.lower() for name, _ in self._headers}
        chunked = not bodiless and "content-length" not in names
        self._send_head(int(code), reason, chunked)
        if not bodiless:
            self._send_part(first, chunked)
            for part in parts:
                self._send_part(part, chunked)
        if chunked:
            self._handler.wfile.write(b"0\r\n\r\n")
        self._handler.wfile.flush()

    def _send_head(self, code: int, reason: str, chunked: bool) -> None:
        self._handler.send_response(code, reason)
        for name, value in self._headers:
            self._handler.send_header(name, value)
        if chunked:
            self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def _send_part(self, part: bytes, chunked: bool) -> None:
        if not part:
            return
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            self._handler.wfile.flush()


def serve(app: Flask, listening: socket.socket) -> BaseWSGIServer:
    """Return a server on a socket that already listens, with a thread for each connection."""
    host, port = listening.getsockname()[:2]
    # Werkzeug duplicates the descriptor.
    server = make_server(host, port, app, threaded=True, request_handler=Handler, fd=listening.fileno())
    listening.close()
    return server
