"""All errors are problem documents (RFC 9457)."""

import json
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.infra.database import reading
from app.models import User
from app.web.access import public
from tests.conftest import MakeApp
from tests.helpers.flows import slug
from tests.helpers.servers import Server
from tests.helpers.upstream import Upstream

MEMBERS = {"type", "title", "status", "detail", "instance", "request_id"}
LEAKS = ("Traceback", "sqlalchemy", "site-packages", "SELECT", "INSERT", "werkzeug", "0x")


def assert_is_problem(response: TestResponse, path: str) -> None:
    body = response.json
    assert response.content_type == "application/problem+json"
    assert MEMBERS <= body.keys() <= MEMBERS | {"errors", "authorize_url", "error"}
    assert body["status"] == response.status_code
    assert body["type"].startswith("/problems/")
    assert body["detail"]
    assert body["instance"] == path
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert not any(leak in response.text for leak in LEAKS)


@pytest.mark.requirement("I1")
@pytest.mark.sqlite_only
def test_errors_have_one_format(client: FlaskClient) -> None:
    errors: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("GET", "/nothing", {}, 404, "not-found"),
        ("GET", "/api/nothing", {}, 404, "not-found"),
        ("POST", "/api/nothing", {}, 404, "not-found"),
        ("GET", "/api//session", {}, 404, "not-found"),
        ("DELETE", "/api/login", {}, 405, "method-not-allowed"),
        ("GET", "/api/login", {}, 405, "method-not-allowed"),
        ("POST", "/api/login", {"data": "{"}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": b"\xff\xfe{}"}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": '{"login": "a", "login": "b"}'}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": '{"login": NaN}'}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": '{"login": "\\ud800"}'}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": '{"login": 1e400}'}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": "[" * 60_000}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": "9" * 6_000}, 400, "malformed-request"),
        ("POST", "/api/login", {"data": "[]"}, 422, "validation-error"),
        ("POST", "/api/login", {"data": "null"}, 422, "validation-error"),
        ("POST", "/api/login", {"data": '"text"'}, 422, "validation-error"),
        ("POST", "/api/login", {"data": "{}"}, 422, "validation-error"),
        (
            "POST",
            "/api/login",
            {"data": "login=a", "content_type": "text/plain"},
            415,
            "unsupported-media-type",
        ),
        ("POST", "/api/login", {"data": {"login": "a"}, "content_type": None}, 415, "unsupported-media-type"),
        ("POST", "/api/login", {"data": " " * 65_537}, 413, "payload-too-large"),
        ("GET", "/api/user", {}, 401, "not-signed-in"),
        ("GET", "/api/spotify/token", {}, 409, "spotify-not-connected"),
    ]
    for method, path, sent, status, problem in errors:
        options = {"content_type": "application/json", **sent} if "data" in sent else sent
        options = {name: value for name, value in options.items() if value is not None}
        response = client.open(path, method=method, base_url="http://evil.example", **options)
        assert "evil" not in response.text + str(response.headers)
        assert (response.status_code, slug(response)) == (status, problem), (path, sent)
        assert_is_problem(response, path)
        assert status != 405 or response.headers["Allow"]


@pytest.mark.sqlite_only
def test_problems_of_the_gateway_are_also_errors_in_spotifys_format(
    app: Flask, client: FlaskClient, upstream: Upstream
) -> None:
    @app.get("/api/spotify/v1/fails")
    @public
    def fails() -> str:
        raise ZeroDivisionError

    web_api = "/api/spotify/v1"
    responses = [
        client.get(f"{web_api}/me/../x"),
        client.get(f"{web_api}/me", headers={"X-Requested-With": ""}),
        client.get(f"{web_api}/"),
        client.get(web_api),
        client.get("/v1/"),
        client.patch(f"{web_api}/me"),
        client.get(f"{web_api}/me"),
        client.put(f"{web_api}/me", data=b" " * 300_000),
        client.put(f"{web_api}/me", data=b"{}", content_type="text/plain"),
        client.get(f"{web_api}/fails"),
    ]

    statuses = [response.status_code for response in responses]
    assert statuses == [400, 403, 404, 404, 404, 405, 409, 413, 415, 500]
    for response in responses:
        assert_is_problem(response, response.request.path)
        problem = response.json
        assert problem["error"] == {"status": response.status_code, "message": problem["detail"]}
    for path in ("/api/spotify/v1x", "/v1x", "/api/spotify/nothing"):
        assert "error" not in client.get(path).json


@pytest.mark.sqlite_only
def test_unexpected_error_is_described_in_the_log_only(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/api/fails")
    @public
    def fails() -> str:
        raise ZeroDivisionError("a secret: hunter2")

    response = client.get("/api/fails", headers={"Origin": "http://127.0.0.1:5173"})

    assert (response.status_code, slug(response)) == (500, "internal-error")
    assert_is_problem(response, "/api/fails")
    assert "hunter2" not in response.text
    assert response.headers["Access-Control-Allow-Origin"] == "http://127.0.0.1:5173"
    assert any(record.exc_info for record in caplog.records)
    assert client.get("/api/session").status_code == 200


@pytest.mark.sqlite_only
def test_route_without_an_access_rule_cannot_be_called(app: Flask, client: FlaskClient) -> None:
    @app.get("/api/undeclared")
    def undeclared_view() -> str:
        return "secret"

    response = client.get("/api/undeclared")

    assert response.status_code == 500
    assert "secret" not in response.text


@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@pytest.mark.sqlite_only
def test_any_bytes_as_a_body_are_a_client_error(client: FlaskClient, body: bytes) -> None:
    response = client.post("/api/login", data=body, content_type="application/json")

    assert 400 <= response.status_code < 500
    assert_is_problem(response, "/api/login")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(login=_json, password=_json, more=st.dictionaries(st.sampled_from(["x", "id", ""]), _json, max_size=1))
@pytest.mark.sqlite_only
def test_any_json_as_a_body_is_a_client_error(
    client: FlaskClient, login: object, password: object, more: dict[str, object]
) -> None:
    body = json.dumps({"login": login, "password": password, **more})
    response = client.post("/api/login", data=body, content_type="application/json")

    assert 400 <= response.status_code < 500
    assert_is_problem(response, "/api/login")


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
@pytest.mark.sqlite_only
def test_response_without_redis_is_503(client: FlaskClient) -> None:
    client.set_cookie("backline_session", "A" * 43)

    response = client.get("/api/session", headers={"Origin": "http://127.0.0.1:5173"})

    assert (response.status_code, slug(response)) == (503, "service-unavailable")
    assert_is_problem(response, "/api/session")
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["Access-Control-Allow-Origin"] == "http://127.0.0.1:5173"
    for path in ("/livez", "/api/docs", "/api/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/readyz").status_code == 503


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
@pytest.mark.sqlite_only
def test_only_developers_are_told_what_is_down(client: FlaskClient) -> None:
    client.set_cookie("backline_session", "A" * 43)  # read by the session
    by_session, by_route = client.get("/api/session"), register_without_checks(client)
    client.application.config["NAMES_DEPENDENCIES"] = False  # as in production
    in_production = client.get("/api/session")

    expected = "Redis is not available (ConnectionError). `flask doctor` says why."
    assert [response.json["detail"] for response in (by_session, by_route)] == [expected] * 2
    assert "Redis" not in in_production.text


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_registration_without_redis_is_503_and_has_no_effect(client: FlaskClient) -> None:

    response = register_without_checks(client)

    assert (response.status_code, slug(response)) == (503, "service-unavailable")
    assert "Set-Cookie" not in response.headers
    with client.application.app_context(), reading() as db:  # no account was created
        assert db.scalar(sa.select(sa.func.count()).select_from(User)) == 0


def test_response_without_a_database_is_503(make_app: MakeApp, database_url: str) -> None:
    away = (
        "mysql+mysqldb://root@localhost/backline?unix_socket=/nowhere/mysql.sock"
        if database_url.startswith("mysql")
        else "sqlite:////dev/null/backline.sqlite3"
    )
    client = make_app(DATABASE_URL=away).test_client()

    response = register_without_checks(client)

    assert (response.status_code, slug(response)) == (503, "service-unavailable")
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503


def register_without_checks(client: FlaskClient) -> TestResponse:
    return client.post(
        "/api/register",
        json={"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"},
    )


@pytest.mark.requirement("H2")
@pytest.mark.sqlite_only
def test_malformed_chunks_and_large_bodies_are_client_errors_and_affect_no_other_request(
    server: Callable[..., AbstractContextManager[Server]],
) -> None:
    with server(workers=1) as api:
        for body in (b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n"):
            send_malformed_chunks(api, body)
        for is_chunked in (False, True):
            send_large_bodies(api, is_chunked=is_chunked)


def send_malformed_chunks(api: Server, body: bytes) -> None:
    head = (
        b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Requested-With: x\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(head + body)
        response = connection.makefile("rb").read()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"/problems/malformed-request" in response


@pytest.mark.settings(TRUSTED_HOSTS="API.example.com")
@pytest.mark.sqlite_only
def test_only_trusted_hosts_and_probes_are_served(client: FlaskClient) -> None:

    rejected = client.get("/api/session", base_url="http://evil.example")

    assert (rejected.status_code, slug(rejected)) == (400, "malformed-request")
    assert client.get("/api/session", base_url="http://api.example.com").status_code == 200
    for host in ("127.0.0.1", "localhost"):
        assert client.get("/readyz", base_url=f"http://{host}:5000").status_code == 200


def test_database_without_migrations_is_not_ready(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(DATABASE_URL=f"sqlite:///{tmp_path}/new.sqlite3")

    assert app.test_client().get("/readyz").status_code == 503


def send_large_bodies(api: Server, *, is_chunked: bool) -> None:
    big = b'"' + b"x" * 300_000 + b'"'
    headers = {"X-Requested-With": "test", "Content-Type": "application/json"}
    with requests.Session() as http:
        http.trust_env = False
        for _ in range(10):
            body = iter([big[:50_000], big[50_000:]]) if is_chunked else big
            rejected = http.post(f"{api.url}/api/login", data=body, headers=headers, timeout=60)
            assert rejected.status_code == 413
            assert rejected.json()["type"] == "/problems/payload-too-large"
            assert http.get(f"{api.url}/api/session", timeout=60).status_code == 200
