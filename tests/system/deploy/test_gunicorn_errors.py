"""Responses and logs of gunicorn for requests that do not reach the application (deploy/worker.py)."""

import json
import logging
import signal
import socket
import sys
import time
from contextlib import ExitStack, closing
from typing import Any, NoReturn

import pytest
from gunicorn.http.errors import InvalidResponseHeader  # type: ignore[import-untyped]

from app.infra import log_setup
from deploy.worker import JsonFormatter, Worker
from tests.helpers.raw_http import RawResponse, check_problem, exchange, request, send_plain
from tests.helpers.servers import LONG, Server, eventually, running_server

pytestmark = pytest.mark.processes

CODE = "a-secret-code-of-spotify"
CALLBACK = f"/api/spotify/authorize?code={CODE}&state={CODE}"
CHUNKED = b"0\r\n\r\n"

REJECTED = {
    "method": (request("g#t", CALLBACK), 400),
    "line": (f"GET {CALLBACK}\r\n\r\n".encode(), 400),
    "version": (f"GET {CALLBACK} HTTP/9.9\r\nHost: x\r\n\r\n".encode(), 400),
    "target": (request("GET", f"{CALLBACK}&x=\xff"), 400),
    "header name": (request("GET", CALLBACK, f"X {CODE}: a"), 400),
    "header value": (request("GET", CALLBACK, f"X: {CODE}\x01"), 400),
    "obs-fold": (request("GET", CALLBACK, "X: a\r\n b"), 400),
    "space before the colon": (request("GET", CALLBACK, "X : a"), 400),
    "bare CR": (request("GET", CALLBACK, "X: a\rY: b"), 400),
    "two Hosts": (request("GET", CALLBACK, f"Host: {CODE}"), 400),
    "two lengths": (request("GET", CALLBACK, "Content-Length: 1", "Content-Length: 2"), 400),
    "length and chunked": (
        request("GET", CALLBACK, "Content-Length: 4", "Transfer-Encoding: chunked", body=CHUNKED),
        400,
    ),
    "chunked in HTTP/1.0": (
        request("GET", CALLBACK, "Transfer-Encoding: chunked", body=CHUNKED).replace(
            b"HTTP/1.1", b"HTTP/1.0"
        ),
        400,
    ),
    "long line": (request("GET", f"{CALLBACK}{'x' * 4096}"), 414),
    "long header": (request("GET", CALLBACK, f"X: {CODE}{'x' * 8192}"), 431),
    "many headers": (request("GET", CALLBACK, *(f"X-{number}: {CODE}" for number in range(101))), 431),
    "expectation": (request("GET", CALLBACK, f"Expect: {CODE}"), 417),
    "transfer coding": (request("GET", CALLBACK, f"Transfer-Encoding: {CODE}, chunked"), 501),
}


@pytest.mark.requirement("D11")
@pytest.mark.requirement("I1")
@pytest.mark.requirement("H2")
@pytest.mark.parametrize("case", REJECTED)
def test_rejection_is_a_problem_that_does_not_quote_the_request(api: Server, case: str) -> None:
    sent, status = REJECTED[case]

    response = send_plain(api.port, sent)

    check_problem(response, status, "malformed-request")
    assert response.headers["Connection"] == "close"
    assert CODE not in str(response.headers) + response.body.decode()
    line = eventually(lambda: errors_logged(api, response))[0]
    assert line["event"] == "request_rejected"
    assert (line["status"], line["logger"]) == (status, "gunicorn.error")
    assert CODE not in api.log


def test_lingering_clients_do_not_block_the_worker(api: Server) -> None:
    """Each client gets a response and does not close. gunicorn would wait two seconds for each in turn."""
    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(20):
            lingering = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=LONG))
            lingering.sendall(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n")
            assert lingering.recv(4096)
        assert send_plain(api.port, request("GET", "/livez", host="127.0.0.1")).status == 200

    assert time.monotonic() - began < 30  # and not forty


def errors_logged(api: Server, response: RawResponse) -> list[dict[str, Any]]:
    wanted = response.problem["request_id"]
    return [json.loads(line) for line in api.log.splitlines() if wanted in line]


@pytest.mark.requirement("J2")
def test_every_line_from_gunicorn_is_json(api: Server) -> None:
    read = gunicorns_lines(api)

    assert any(line["event"].startswith("Listening at") for line in read)
    assert all({"time", "level", "event"} <= line.keys() for line in read)


def gunicorns_lines(api: Server) -> list[dict[str, Any]]:
    """Return what gunicorn has logged so far. Every line must be JSON."""
    # The arbiter warns of APP_ENV=development before it knows how to log.
    lines = [line for line in api.log.splitlines() if not line.startswith("Backline runs with")]
    return [line for line in map(json.loads, lines) if line["logger"] == "gunicorn.error"]


def fail(error: Exception) -> NoReturn:
    raise error


@pytest.mark.requirement("D11")
@pytest.mark.requirement("J2")
def test_gunicorn_never_logs_what_a_client_sent_even_at_debug_level(behind_nginx: dict[str, str]) -> None:
    asked = {**behind_nginx, "GUNICORN_CMD_ARGS": "--log-level debug"}
    with running_server(asked, workers=1) as api:
        first = api.workers
        api.signal(signal.SIGHUP)
        eventually(lambda: len(api.workers) == 1 and api.workers != first)
        # gunicorn would tell what the client had sent before it went away.
        with closing(socket.create_connection(("127.0.0.1", api.port))) as connection:
            connection.sendall(f"GET {CALLBACK} HTTP/1.1\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        response = send_plain(api.port, REJECTED["method"][0])

        assert len(eventually(lambda: errors_logged(api, response))) == 1
        assert CODE not in api.log
        assert all(line["level"] != "DEBUG" for line in gunicorns_lines(api))


class Recorder:
    """Stands in for gunicorn's logger."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def error(self, event: str, extra: dict[str, Any]) -> None:
        self.written.append(f"{event} {extra}")


@pytest.mark.requirement("I1")
@pytest.mark.parametrize(
    "error",
    [ValueError(f"of {CODE}"), InvalidResponseHeader(f"Set-Cookie: {CODE}")],
    ids=["any", "our header"],
)
def test_error_outside_the_app_is_a_500_and_the_log_names_its_origin(error: Exception) -> None:
    worker, log = Worker.__new__(Worker), Recorder()
    worker.log = log
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        try:
            fail(error)
        except Exception as raised:  # noqa: BLE001 - as gunicorn does
            worker.handle_error(None, ours, None, raised)
        response = exchange(theirs, b"GET / HTTP/1.1\r\n\r\n")

    check_problem(response, 500, "internal-error")
    (written,) = log.written
    assert response.problem["request_id"] in written
    assert type(error).__name__ in written
    assert "test_gunicorn_errors.py" in written
    assert CODE not in written + response.body.decode()


@pytest.mark.requirement("J2")
@pytest.mark.parametrize("kind", ["plain", "with fields", "with a traceback"])
def test_lines_from_gunicorn_have_the_format_of_the_app(kind: str) -> None:
    record = logging.makeLogRecord({"name": "gunicorn.error", "levelname": "INFO", "msg": 'a "b"\n%s\x7f'})
    record.args = ("c",)
    if kind == "with fields":
        vars(record).update(status=400, reason="x\ny")
    if kind == "with a traceback":
        try:
            fail(ValueError())
        except ValueError:
            record.exc_info = sys.exc_info()

    assert JsonFormatter().format(record) == log_setup.JsonFormatter().format(record)
