"""Rejections by `GET /api/spotify/authorize`, and what they leave unchanged."""

import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.database import writing
from app.models import AccessToken, GrantState
from app.spotify.oauth import exchange
from app.spotify.oauth import state as oauth_state
from config import Config
from tests.conftest import SPA_ORIGIN
from tests.helpers.flows import (
    another_tab,
    connect,
    login,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.sandbox_client import SandboxClient, callback_query

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

NewClient = Callable[[], FlaskClient]
PAGE = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
ONE_MINUTE_AGO = datetime.now(UTC) - timedelta(minutes=1)
PROGRAM = {"Accept": "application/json"}


@pytest.fixture(autouse=True)
def _capture_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app")


def visit(client: FlaskClient, query: Any = "", **headers: str) -> TestResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get("/api/spotify/authorize", query_string=query, headers=names)


def result(response: TestResponse) -> str:
    """Return the result in the URL that the browser is redirected to."""
    assert response.status_code == 303, response.text
    return response.headers["Location"].partition("?spotify=")[2]


def keys(app: Flask) -> set[bytes]:
    return set(app.extensions["backline"].redis.keys())


def from_address(client: FlaskClient, address: str) -> FlaskClient:
    client.environ_base["REMOTE_ADDR"] = address
    return client


# --- errors from Spotify (RFC 6749 section 4.1.2.1) ---------------------------------------

ERRORS = {
    "access_denied": (401, "spotify-access-denied", "denied"),
    "server_error": (503, "spotify-unavailable", "error-spotify-unavailable"),
    "temporarily_unavailable": (503, "spotify-unavailable", "error-spotify-unavailable"),
    "interaction_required": (503, "spotify-unavailable", "error-spotify-unavailable"),
    "ACCESS_DENIED": (503, "spotify-unavailable", "error-spotify-unavailable"),
    "invalid_request": (503, "spotify-misconfigured", "error-spotify-misconfigured"),
    "unauthorized_client": (503, "spotify-misconfigured", "error-spotify-misconfigured"),
    "unsupported_response_type": (503, "spotify-misconfigured", "error-spotify-misconfigured"),
    "invalid_scope": (503, "spotify-misconfigured", "error-spotify-misconfigured"),
}


def test_each_oauth_error_has_its_own_problem_and_result(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    for error, (status, problem, redirect) in ERRORS.items():
        caplog.clear()
        states = [callback_query(start_authorization(client))["state"] for _ in range(2)]
        one, two = ({"error": error, "state": state} for state in states)

        response, page = visit(client, one, **PROGRAM), visit(client, two, **PAGE)

        assert (response.status_code, slug(response), result(page)) == (status, problem, redirect)
        assert ("Retry-After" in response.headers) is (status == 503)
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        ours = problem == "spotify-misconfigured"
        assert [vars(record)["reason"] for record in errors] == [error] * (2 if ours else 0)
        assert slug(visit(client, one, **PROGRAM)) == "spotify-state-mismatch"  # it was consumed


def test_unknown_oauth_error_is_neither_logged_nor_reflected(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    state = callback_query(start_authorization(client))["state"]

    response = visit(client, {"error": "evil\r\nerror", "state": state})

    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
    assert "evil" not in f"{response.headers}{response.text}{[vars(record) for record in caplog.records]}"


# --- a state is valid in one session only -----------------------------------------------------------


def prefetch(app: Flask, callback: dict[str, str], client: FlaskClient) -> None:
    for marks in (
        {"Sec-Purpose": "prefetch"},
        {"Sec-Purpose": "prefetch;prerender", "Sec-Fetch-Mode": "navigate"},
        {"Purpose": "prefetch"},
        {"X-Moz": "prefetch"},
    ):
        rejected = client.get("/api/spotify/authorize", query_string=callback, headers=PAGE | marks)
        assert (rejected.status_code, slug(rejected)) == (503, "service-unavailable")


def head_request(app: Flask, callback: dict[str, str], client: FlaskClient) -> None:
    assert client.head("/api/spotify/authorize", query_string=callback).status_code == 503


@pytest.mark.parametrize("by", [prefetch, head_request])
def test_foreign_attempt_does_not_consume_a_callback(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, by: Callable[..., None]
) -> None:
    register(client, "ada")
    callback = callback_query(sandbox.consent(start_authorization(client)))

    by(app, callback, client)

    assert sandbox.calls(path="/api/token") == []
    assert visit(client, callback).json["status"] == "connected"


def test_prefetch_does_not_start_an_authorization(client: FlaskClient, app: Flask) -> None:
    rejected = visit(client, Sec_Purpose="prefetch", **PAGE)

    assert (rejected.status_code, slug(rejected)) == (503, "service-unavailable")
    assert "Set-Cookie" not in rejected.headers
    assert keys(app) == set()


@pytest.mark.parametrize("fault", ["rate_limited", "no connection"])
def test_callback_can_be_repeated_if_its_code_was_not_used(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    callback = sandbox.consent(start_authorization(client))
    if fault == "rate_limited":
        sandbox.fault(on="code", kind="rate_limited", retry_after=1)
        assert slug(send_callback(client, callback)) == "spotify-rate-limited"
    else:
        accounts = app.extensions["backline"].accounts
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(accounts, "_config", _with_accounts_at(accounts._config, "http://127.0.0.1:1"))
            assert slug(send_callback(client, callback)) == "spotify-unavailable"

    assert send_callback(client, callback).json["status"] == "connected"


def _with_accounts_at(config: Config, url: str) -> Config:
    return config.model_copy(update={"spotify_accounts_url": url})


def test_code_that_may_have_been_used_is_not_sent_twice(client: FlaskClient, sandbox: SandboxClient) -> None:
    callback = sandbox.consent(start_authorization(client))
    sandbox.fault(on="code", kind="google_502", after_effect=True)
    assert slug(send_callback(client, callback)) == "spotify-unavailable"

    assert slug(send_callback(client, callback)) == "spotify-state-mismatch"
    assert len(sandbox.calls(path="/api/token")) == 1


def test_rate_limited_profile_request_does_not_consume_a_state(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    first, second = (sandbox.consent(start_authorization(client)) for _ in range(2))
    sandbox.fault(on="me", kind="rate_limited", retry_after=600)
    assert slug(send_callback(client, first)) == "spotify-rate-limited"

    waiting = send_callback(client, second)
    assert (waiting.status_code, slug(waiting)) == (429, "spotify-rate-limited")
    assert len(sandbox.calls(path="/api/token")) == 1


def test_open_circuit_of_the_web_api_does_not_consume_a_code(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    callbacks = [sandbox.consent(start_authorization(client)) for _ in range(16)]
    sandbox.fault(on="me", kind="google_502", times=None)
    for callback in callbacks[:15]:  # as many as open the circuit
        assert slug(send_callback(client, callback)) == "spotify-unavailable"
    sandbox.clear_calls()

    assert slug(send_callback(client, callbacks[15])) == "spotify-unavailable"
    assert sandbox.calls() == []
    sandbox.clear_faults()
    app.extensions[
        "backline"
    ].web_api._limits.deployment.circuit_breaker.record_success()  # as after a successful call
    assert send_callback(client, callbacks[15]).json["status"] == "connected"


# --- other sites -----------------------------------------------------------------------------------

FROM_ANOTHER_SITE = {
    "link": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Referer": "https://evil.example/a",
    },
    "link without a referrer": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "fetch": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "sandboxed frame": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    "look-alike": {"Sec-Fetch-Site": "cross-site", "Referer": f"{SPA_ORIGIN}@evil.example/"},
    "listed as referrer only": {
        "Sec-Fetch-Site": "cross-site",
        "Origin": "https://evil.example",
        "Referer": f"{SPA_ORIGIN}/",
    },
    "unknown kind": {"Sec-Fetch-Site": "somewhere"},
}
ALLOWED_START = {
    "same origin": {"Sec-Fetch-Site": "same-origin"},
    "same site": {"Sec-Fetch-Site": "same-site", "Referer": "https://other.example.com/"},
    "typed in": {"Sec-Fetch-Site": "none"},
    "no browser": {},
    "the app on another site": {"Sec-Fetch-Site": "cross-site", "Origin": SPA_ORIGIN},
    "a link in the app on another site": {"Sec-Fetch-Site": "cross-site", "Referer": f"{SPA_ORIGIN}/"},
    "FRONTEND_URL": {"Sec-Fetch-Site": "cross-site", "Referer": "http://127.0.0.1:5000/"},
}


def test_another_site_cannot_start_an_authorization(client: FlaskClient, app: Flask) -> None:
    queries = ("", "reauthorize=true", "state=x")
    for headers, accept, query in itertools.product(FROM_ANOTHER_SITE.values(), (PROGRAM, PAGE), queries):
        response = client.get(f"/api/spotify/authorize?{query}", headers={**accept, **headers})
        assert (response.status_code, slug(response)) == (403, "cross-site-request")
        assert "Set-Cookie" not in response.headers
    assert keys(app) == set()


def test_app_can_start_an_authorization(client: FlaskClient) -> None:
    for headers in ALLOWED_START.values():
        begun = client.get("/api/spotify/authorize", headers=headers)
        assert begun.json["status"] == "authorization_required"


def test_another_site_cannot_undo_a_disconnect(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client)
    connect(client, sandbox)
    assert visit(client, "reauthorize=true", **PAGE, Sec_Fetch_Site="cross-site").status_code == 403
    client.delete("/api/spotify")

    rejected = visit(client, **PAGE, Sec_Fetch_Site="cross-site", Referer="https://evil.example/")

    assert (rejected.status_code, slug(rejected)) == (403, "cross-site-request")


def test_callback_is_accepted_from_another_site(client: FlaskClient, sandbox: SandboxClient) -> None:
    callback = callback_query(sandbox.consent(start_authorization(client)))

    back = visit(
        client, callback, **PAGE, Sec_Fetch_Site="cross-site", Referer="https://accounts.spotify.com/"
    )

    assert result(back) == "connected"


def test_authorization_url_always_requests_the_consent_dialog(
    new_client: NewClient, sandbox: SandboxClient
) -> None:
    """Also on another device after a disconnect."""
    register(client := new_client(), "ada")
    connect(client, sandbox)
    client.delete("/api/spotify")
    login(other := new_client(), "ada")

    assert "show_dialog=true" in start_authorization(client)
    assert "show_dialog=true" in start_authorization(other)


# --- floods ----------------------------------------------------------------------------------------


def test_authorization_adds_one_redis_key(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    url = start_authorization(client)

    kinds = sorted(key.decode().split(":")[0] for key in keys(app))
    assert kinds == ["authorization", "session", "throttle", "throttle"]
    start_authorization(client)
    assert len(keys(app)) == 5  # counters of the address exist already
    send_callback(client, sandbox.consent(url))
    assert len([key for key in keys(app) if key.startswith(b"author")]) == 2


def test_session_can_have_thirty_open_authorizations(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client)
    urls = [start_authorization(client) for _ in range(30)]

    rejected = client.get("/api/spotify/authorize")
    assert (rejected.status_code, slug(rejected)) == (429, "too-many-attempts")
    assert 500 <= int(rejected.headers["Retry-After"]) <= 600
    assert result(visit(client, **PAGE)) == "error-too-many-attempts"
    assert send_callback(client, sandbox.consent(urls[0], decision="cancel")).status_code == 401
    start_authorization(client)  # which allows another one
    assert client.get("/api/spotify/authorize").status_code == 429


def test_address_can_have_600_unfinished_authorizations(
    new_client: NewClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert oauth_state.MAX_PER_ADDRESS == 600
    monkeypatch.setattr(oauth_state, "MAX_PER_ADDRESS", 4)
    visitors = [from_address(new_client(), f"2001:db8:1:2::{number}") for number in range(4)]
    urls = [start_authorization(visitor) for visitor in visitors]
    late = from_address(new_client(), "2001:db8:1:2:ffff::1")  # of the same household

    rejected = late.get("/api/spotify/authorize")
    assert (rejected.status_code, slug(rejected)) == (429, "too-many-attempts")
    assert 1 <= int(rejected.headers["Retry-After"]) <= 600
    assert "Set-Cookie" not in rejected.headers
    start_authorization(from_address(new_client(), "2001:db8:1:3::1"))
    # Only a consent allows another one. Declined ones must not.
    assert send_callback(visitors[0], sandbox.consent(urls[0], decision="cancel")).status_code == 401
    assert late.get("/api/spotify/authorize").status_code == 429
    assert send_callback(visitors[1], sandbox.consent(urls[1])).json["status"] == "connected"
    start_authorization(late)


def test_concurrent_starts_are_counted_exactly(
    app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_state, "MAX_PER_ADDRESS", 50)
    with ThreadPoolExecutor(16) as pool:
        statuses = pool.map(lambda _: app.test_client().get("/api/spotify/authorize").status_code, range(100))

    assert sorted(statuses) == [200] * 50 + [429] * 50


def test_excess_exchange_of_an_address_keeps_its_state(
    client: FlaskClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exchange.MAX_EXCHANGES_PER_ADDRESS == 1000
    monkeypatch.setattr(exchange, "MAX_EXCHANGES_PER_ADDRESS", 2)
    register(client)
    callbacks = [sandbox.consent(start_authorization(client)) for _ in range(3)]

    statuses = [send_callback(client, callback).status_code for callback in callbacks]

    assert statuses == [200, 200, 429]
    assert len(sandbox.calls(path="/api/token")) == 2
    elsewhere = from_address(another_tab(client), "203.0.113.9")
    assert send_callback(elsewhere, callbacks[2]).json["status"] == "connected"


def test_polling_page_gets_the_same_url_until_it_is_used(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_state, "_SAME_URL_SECONDS", 10**9)  # before a new period begins
    register(client)
    connect(client, sandbox)
    with app.app_context(), writing() as db:
        db.execute(
            sa.update(AccessToken).values(
                state=GrantState.REAUTHORIZATION_REQUIRED, expires_at=ONE_MINUTE_AGO
            )
        )

    def poll() -> str:
        offers = [another_tab(client).get("/api/spotify/token") for _ in range(5)]
        assert {slug(offer) for offer in offers} == {"spotify-reauthorization-required"}
        [url] = {offer.json["authorize_url"] for offer in offers}
        return str(url)

    before = keys(app)
    first = poll()
    assert len([key for key in keys(app) - before if key.startswith(b"authorization:")]) == 1
    assert send_callback(client, sandbox.consent(first, decision="cancel")).status_code == 401
    second = poll()
    assert callback_query(second)["state"] != callback_query(first)["state"]
    assert send_callback(client, sandbox.consent(second)).json["status"] == "connected"
