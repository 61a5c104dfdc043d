"""The request log: one line for each request, and fields that tell which request a line belongs to."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.infra import log_setup
from app.web.access import public
from app.web.request_log import RequestFields
from tests.helpers.flows import register

pytestmark = pytest.mark.sqlite_only

REQUEST_FIELDS = {"time", "level", "logger", "event", "method", "route", "status", "outcome", "duration_ms"}
CONTEXT_FIELDS = {"request_id", "client", "user_id"}


@pytest.fixture
def lines(app: Flask) -> Iterator[list[dict[str, Any]]]:
    """Everything the app logs, parsed."""
    read: list[dict[str, Any]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            read.append(json.loads(self.format(record)))

    reader, root = Reader(), logging.getLogger()
    reader.addFilter(RequestFields())
    reader.setFormatter(log_setup.JsonFormatter())
    level = root.level
    root.addHandler(reader)
    root.setLevel("INFO")
    yield read
    root.removeHandler(reader)
    root.setLevel(level)


def requests_in(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "request"]


@pytest.mark.requirement("J3")
@pytest.mark.parametrize(
    ("method", "path", "route", "status", "outcome"),
    [
        ("GET", "/api/session", "/api/session", 200, "ok"),
        ("GET", "/api/user", "/api/user", 401, "not-signed-in"),
        ("GET", "/api/nothing", None, 404, "not-found"),
        ("POST", "/api/login", "/api/login", 422, "validation-error"),
        ("GET", "/api/fails/7", "/api/fails/<int:number>", 500, "internal-error"),
    ],
)
def test_request_is_logged_as_one_line_with_all_fields(
    app: Flask,
    client: FlaskClient,
    lines: list[dict[str, Any]],
    method: str,
    path: str,
    route: str | None,
    status: int,
    outcome: str,
) -> None:
    @app.get("/api/fails/<int:number>")
    @public
    def fails(number: int) -> str:
        raise ZeroDivisionError

    response = client.open(
        path, method=method, json={}, query_string={"code": "c"}, environ_base={"REMOTE_ADDR": "192.0.2.7"}
    )

    [line] = requests_in(lines)
    assert line.keys() == REQUEST_FIELDS | CONTEXT_FIELDS
    assert line["time"].endswith("+00:00")
    assert (line["method"], line["route"]) == (method, route)
    assert (line["status"], line["outcome"]) == (response.status_code, outcome) == (status, outcome)
    assert (line["client"], line["user_id"]) == ("192.0.2.7", None)
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert line["duration_ms"] >= 0


@pytest.mark.requirement("J3")
def test_every_record_of_a_request_has_the_request_fields(
    app: Flask, client: FlaskClient, lines: list[dict[str, Any]]
) -> None:
    @app.get("/api/logs")
    @public
    def logs() -> str:
        logging.getLogger("a.library").warning("logged", extra={"client": "its own"})
        logging.getLogger("app.somewhere").warning("logged")
        return ""

    user = register(client)
    lines.clear()
    response = client.get("/api/logs")

    context = {"request_id": response.headers["X-Request-ID"], "client": "127.0.0.1", "user_id": user["id"]}
    # Another thread delivers an email.
    of_library, of_app, request_line = (
        line for line in lines if line.get("request_id") == context["request_id"]
    )
    assert context | {"client": "its own"} == {name: of_library[name] for name in CONTEXT_FIELDS}
    assert (
        context
        == {name: of_app[name] for name in CONTEXT_FIELDS}
        == {name: request_line[name] for name in CONTEXT_FIELDS}
    )


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("traceparent", [f"00-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-ff-{{later}}"])
def test_trace_of_a_request_is_logged(
    client: FlaskClient, lines: list[dict[str, Any]], traceparent: str
) -> None:
    client.get("/api/session", headers={"traceparent": traceparent})

    [line] = requests_in(lines)
    assert (line["trace_id"], line["parent_id"]) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01.more",
        f'00-{TRACE}-{SPAN}-01", "event": "forged',
    ],
)
def test_invalid_trace_is_ignored(client: FlaskClient, lines: list[dict[str, Any]], traceparent: str) -> None:
    response = client.get("/api/session", headers={"traceparent": traceparent})

    [line] = requests_in(lines)
    assert response.status_code == 200
    assert line.keys() == REQUEST_FIELDS | CONTEXT_FIELDS


@pytest.mark.requirement("J3")
@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_requests_are_logged_while_sessions_are_unavailable(
    client: FlaskClient, lines: list[dict[str, Any]]
) -> None:
    client.set_cookie("backline_session", "A" * 43)

    unopened = client.get("/api/session")
    client.delete_cookie("backline_session")
    unsaved = client.get("/api/spotify/authorize")

    first = next(line for line in lines if line["event"] == "sessions_unavailable")
    assert (first["request_id"], first["user_id"]) == (unopened.headers["X-Request-ID"], None)
    assert [(line["status"], line["outcome"]) for line in requests_in(lines)] == [
        (response.status_code, "service-unavailable") for response in (unopened, unsaved)
    ]


@pytest.mark.requirement("J3")
def test_logging_does_not_access_the_session(app: Flask, lines: list[dict[str, Any]]) -> None:
    with app.test_request_context("/api/session") as context:
        context.session["user_id"] = 7
        used = context.session
        used.accessed = used.modified = False
        logging.getLogger("app.somewhere").warning("logged")

        assert [line["user_id"] for line in lines if line["event"] == "logged"] == [7]
        assert not used.accessed
        assert not used.modified
