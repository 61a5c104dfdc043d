"""Our shortcuts in gunicorn change nothing but the time that it takes."""

import ipaddress
import socket
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn import http, util  # type: ignore[import-untyped]
from gunicorn.config import Config as GunicornConfig  # type: ignore[import-untyped]
from gunicorn.http import message, wsgi  # type: ignore[import-untyped]
from gunicorn.http.errors import InvalidResponseHeader  # type: ignore[import-untyped]
from gunicorn.http2.response import HTTP2Response  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from app.web import security_headers
from config import Config
from deploy import shortcuts, worker
from deploy.shortcuts import SECURITY_HEADERS, Response
from tests.conftest import SETTINGS

[Original] = HTTP2Response.__bases__  # deploy/shortcuts.py replaces `wsgi.Response` itself

JSON = [("Content-Type", "application/json"), ("X-Request-ID", "0" * 32), *SECURITY_HEADERS]


class Socket:
    """Records what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)


def send(kind: Any, method: str, status: str, headers: list[tuple[str, str]], *parts: bytes) -> list[bytes]:
    request = SimpleNamespace(method=method, version=(1, 1), should_close=lambda: False)
    socket = Socket()
    made = kind(request, socket, SimpleNamespace(protocol="http"))
    made.start_response(status, headers)
    for part in parts:
        made.write(part)
    made.close()
    return socket.sent


def parsed(sent: list[bytes]) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = b"".join(sent).partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, sorted(line for line in lines if not line.startswith(b"Date:")), body


@pytest.mark.parametrize(
    ("method", "status", "headers", "parts"),
    [
        ("GET", "200 OK", [*JSON, ("Content-Length", "2")], [b"{}"]),
        ("GET", "200 OK", [*JSON, ("Content-Length", "4")], [b"{}", b"{}"]),
        ("GET", "200 OK", [*JSON, ("Content-Length", "2")], [b"{}", b"too much"]),
        ("GET", "200 OK", [*JSON, ("Content-Length", "2")], [b"too much"]),
        ("GET", "200 OK", [*JSON, ("Content-Length", "0")], [b""]),
        ("GET", "200 OK", [*JSON, ("Content-Length", "0")], []),
        ("GET", "200 OK", JSON, [b"{", b"}"]),
        ("HEAD", "200 OK", [*JSON, ("Content-Length", "2")], []),
        ("GET", "304 NOT MODIFIED", [*JSON, ("ETag", '"1"')], []),
        ("DELETE", "204 NO CONTENT", JSON, []),
        ("GET", "200 OK", [*JSON, ("Connection", "close"), ("Content-Length", "2")], [b"{}"]),
    ],
)
def test_response_is_the_same_as_gunicorns_own(
    method: str, status: str, headers: list[tuple[str, str]], parts: list[bytes]
) -> None:
    ours, original = (send(kind, method, status, headers, *parts) for kind in (Response, Original))

    assert parsed(ours) == parsed(original)


def test_whole_response_is_one_call_to_send() -> None:
    assert issubclass(worker.Worker, ThreadWorker)  # its module has installed the response
    assert wsgi.Response is Response
    assert len(send(Response, "GET", "200 OK", [*JSON, ("Content-Length", "2")], b"{}")) == 1


def test_header_that_would_end_early_is_still_rejected() -> None:
    for name in ("X-Request-ID", "Content-Type", "Vary"):
        with pytest.raises(InvalidResponseHeader):
            send(Response, "GET", "200 OK", [(name, "Origin\r\nSet-Cookie: a=b"), ("Content-Length", "0")])


def test_known_headers_are_those_of_the_app() -> None:
    headers = security_headers.SecurityHeaders(lambda *_: [], Config.from_env(SETTINGS))._complete([])

    assert set(headers) == set(SECURITY_HEADERS)


def test_date_is_formatted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    misses = shortcuts._http_date.cache_info().misses
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.9)
    assert util.http_date() == util.http_date(1_000_000_000.1) == "Sun, 09 Sep 2001 01:46:40 GMT"
    monkeypatch.setattr("time.time", lambda: 1_000_000_001.0)
    assert util.http_date() == "Sun, 09 Sep 2001 01:46:41 GMT"
    assert shortcuts._http_date.cache_info().misses == misses + 2


def test_remembered_settings_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    original, remembering = GunicornConfig(), GunicornConfig()
    for config in (original, remembering):
        config.set("keepalive", 75)
        config.set("worker_class", "gthread")
    shortcuts.remember_settings(remembering)

    names = [name for name in original.settings if not callable(getattr(original, name))]
    assert {name: getattr(remembering, name) for name in names} == {
        name: getattr(original, name) for name in names
    }
    monkeypatch.delattr(GunicornConfig, "__getattr__")
    assert remembering.keepalive == 75


@pytest.mark.parametrize("allowed", [["127.0.0.1", "::1"], ["10.0.0.0/8"], ["*"], []])
def test_peers_are_trusted_as_by_gunicorn(allowed: list[str]) -> None:
    networks = [ipaddress.ip_network(entry) for entry in allowed if entry != "*"]
    for address in ("127.0.0.1", "127.0.0.2", "::1", "10.1.2.3", "", "unknown", "127.0.0.1"):
        expected = shortcuts._is_in_allow_list(address, allowed, networks)
        assert message._ip_in_allow_list(address, allowed, networks) is expected
    assert message._ip_in_allow_list is not shortcuts._is_in_allow_list


@pytest.mark.parametrize("read", [0, 3, 5])
@pytest.mark.parametrize(
    "first",
    [
        b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /",
        b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n",
    ],
    ids=["none", "length", "chunked"],
)
def test_unread_body_is_not_taken_for_the_next_request(first: bytes, read: int) -> None:
    second = b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        theirs.sendall(first + second)
        parser = http.get_parser(GunicornConfig(), ours, ("127.0.0.1", 1))

        request = next(parser)
        request.body.read(read)
        assert parser.finish_body(deadline=time.monotonic() + 5)
        assert (request.path, next(parser).path) == ("/first", "/second")


def test_request_without_a_body_does_not_change_the_timeout_of_its_socket() -> None:
    with Unchangeable() as connection:
        parser = http.get_parser(GunicornConfig(), connection, ("127.0.0.1", 1))
        next(parser)

        assert parser.finish_body(deadline=time.monotonic() + 5)


class Unchangeable(socket.socket):
    """A socket from which one request can be read."""

    def recv(self, *_: Any) -> bytes:
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

    def settimeout(self, value: float | None) -> None:
        raise AssertionError
