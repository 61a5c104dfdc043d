"""Sends raw bytes as requests, which no HTTP client would send."""

import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from typing import Any

from tests.helpers import secret_scanner
from tests.helpers.servers import LONG, Nginx

MEMBERS = ["type", "title", "status", "detail", "instance", "request_id"]
PRODUCTS = ("nginx/", "gunicorn", "Traceback", "python", "werkzeug", "127.0.0.1:", "<html")
ORIGIN = "http://127.0.0.1:5173"


@dataclass(frozen=True)
class RawResponse:
    status: int
    headers: Message
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Https:
    """A client of nginx."""

    def __init__(self, nginx: Nginx) -> None:
        self.nginx = nginx
        self._context = ssl.create_default_context(cafile=str(nginx.certificate))

    def raw(self, sent: bytes, *, name: str = Nginx.HOST, source: str = "127.0.0.1") -> RawResponse:
        """Send these bytes on a new connection. Returns the response."""
        with self.connection(name=name, source=source) as connection:
            return exchange(connection, sent)

    def get(self, target: str, *headers: str, **options: str) -> RawResponse:
        return self.raw(request("GET", target, *headers), **options)

    @contextmanager
    def connection(self, *, name: str = Nginx.HOST, source: str = "127.0.0.1") -> Iterator[socket.socket]:
        address = ("127.0.0.1", self.nginx.port)
        with (
            closing(socket.create_connection(address, timeout=LONG, source_address=(source, 0))) as plain,
            self._context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            yield connection


def request(method: str, target: str, *headers: str, body: bytes = b"", host: str = Nginx.HOST) -> bytes:
    """Build a request. It is well-formed if the arguments are."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "X-Requested-With: test", *headers]
    if body and not any(header.startswith("Transfer-Encoding") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


def send_plain(port: int, sent: bytes) -> RawResponse:
    """Send these bytes without TLS. Returns the response."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=LONG)) as connection:
        return exchange(connection, sent)


def exchange(connection: socket.socket, sent: bytes) -> RawResponse:
    with suppress(
        ConnectionError, ssl.SSLError
    ):  # a server may respond and close before it has read everything
        connection.sendall(sent)
    method, _, target = sent.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    parser = HTTPResponse(connection, method=method)
    with closing(parser):
        parser.begin()
        response = RawResponse(parser.status, parser.headers, parser.read())
    name = f"{method} {re.split('[ ?]', target)[0]}"
    secret_scanner.SCANNER.record_response(
        name, str(response.status), response.headers.items(), response.body
    )
    return response


def check_problem(response: RawResponse, status: int, slug: str, *, instance: str = "/") -> None:
    """Check the format of a problem (app/web/problems.py) and its headers (app/web/security_headers.py)."""
    assert (response.status, response.headers["Content-Type"]) == (status, "application/problem+json"), (
        response.body
    )
    problem = response.problem
    assert list(problem) == MEMBERS
    assert (problem["status"], problem["type"]) == (status, f"/problems/{slug}")
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == instance
    assert response.headers.get_all("X-Request-ID") == [problem["request_id"]]
    assert len(problem["request_id"]) == 32
    shown = f"{response.headers}{response.body.decode()}"
    assert not any(product in shown.replace(ORIGIN, "") for product in PRODUCTS)
    for name, value in {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "Vary": "Origin",
    }.items():
        assert response.headers.get_all(name) == [value], name
    if status in (429, 502, 503, 504):
        assert int(response.headers["Retry-After"]) > 0


def may_read(response: RawResponse, origin: str | None = ORIGIN) -> bool:
    """Return whether a page of this origin may read the response to a request with credentials."""
    names = (
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Credentials",
        "Access-Control-Expose-Headers",
    )
    found = [response.headers.get_all(name, []) for name in names]
    if found == [[], [], []]:
        return False
    exposed = "Age, ETag, Location, Retry-After, WWW-Authenticate, X-Cache, X-Request-ID"
    assert found == [[origin], ["true"], [exposed]]
    return True
