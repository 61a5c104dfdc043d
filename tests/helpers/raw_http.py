"""Requests byte for byte, as no client library would send them, and the answers to them."""

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
from tests.helpers.servers import Nginx

MEMBERS = ["type", "title", "status", "detail", "instance", "request_id"]
PRODUCTS = ("nginx/", "gunicorn", "Traceback", "python", "werkzeug", "127.0.0.1:", "<html")
ORIGIN = "http://127.0.0.1:5173"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Https:
    """A client of an nginx that shows everything it is sent."""

    def __init__(self, nginx: Nginx) -> None:
        self.nginx = nginx
        self._context = ssl.create_default_context(cafile=str(nginx.certificate))

    def raw(self, sent: bytes, *, name: str = Nginx.HOST, source: str = "127.0.0.1") -> Answer:
        """The answer to these bytes, on a connection of their own."""
        with self.connection(name=name, source=source) as connection:
            return exchange(connection, sent)

    def get(self, target: str, *headers: str, **options: str) -> Answer:
        return self.raw(request("GET", target, *headers), **options)

    @contextmanager
    def connection(self, *, name: str = Nginx.HOST, source: str = "127.0.0.1") -> Iterator[socket.socket]:
        at = ("127.0.0.1", self.nginx.port)
        with (
            closing(socket.create_connection(at, timeout=10, source_address=(source, 0))) as plain,
            self._context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            yield connection


def request(method: str, target: str, *headers: str, body: bytes = b"", host: str = Nginx.HOST) -> bytes:
    """A request that is well formed, apart from what is passed."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "X-Requested-With: test", *headers]
    if body and not any(header.startswith("Transfer-Encoding") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


def plainly(port: int, sent: bytes) -> Answer:
    """The answer to these bytes, without TLS."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        return exchange(connection, sent)


def exchange(connection: socket.socket, sent: bytes) -> Answer:
    with suppress(ConnectionError, ssl.SSLError):  # it may answer and close before it has read all
        connection.sendall(sent)
    method, _, target = sent.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    response = HTTPResponse(connection, method=method)
    with closing(response):
        response.begin()
        answer = Answer(response.status, response.headers, response.read())
    asked = f"{method} {re.split('[ ?]', target)[0]}"
    secret_scanner.SCANNER.record_response(asked, str(answer.status), answer.headers.items(), answer.body)
    return answer


def check_problem(answer: Answer, status: int, slug: str, *, instance: str = "/") -> None:
    """It has the shape of app/web/problems.py, and the headers of app/web/security_headers.py."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), (
        answer.body
    )
    problem = answer.problem
    assert list(problem) == MEMBERS
    assert (problem["status"], problem["type"]) == (status, f"/problems/{slug}")
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == instance
    assert answer.headers.get_all("X-Request-ID") == [problem["request_id"]]
    assert len(problem["request_id"]) == 32
    shown = f"{answer.headers}{answer.body.decode()}"
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
        assert answer.headers.get_all(name) == [value], name
    if status in (429, 502, 503, 504):
        assert int(answer.headers["Retry-After"]) > 0


def may_read(answer: Answer, origin: str | None = ORIGIN) -> bool:
    """Whether a browser lets a page of this origin read the answer to a request with credentials."""
    names = (
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Credentials",
        "Access-Control-Expose-Headers",
    )
    found = [answer.headers.get_all(name, []) for name in names]
    if found == [[], [], []]:
        return False
    assert found == [[origin], ["true"], ["Age, Location, Retry-After, X-Cache, X-Request-ID"]]
    return True
