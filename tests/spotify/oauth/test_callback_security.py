"""Requirements D1 to D12: the security of `GET /api/spotify/authorize`.

Further tests of them are in `test_authorize.py` and, for D9, in `tests/spotify/tokens/test_service.py`.
"""

import base64
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import msgspec
import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.infra.database import reading, writing
from app.infra.log_setup import JsonFormatter
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyUser, User
from app.services import services
from app.spotify.clients.accounts_bulkhead import Waiter
from app.spotify.oauth.state import AuthorizationRecord, AuthorizationStore
from app.spotify.session_connection import ConnectionRef
from tests.helpers.flows import (
    another_tab,
    connect,
    login,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.sandbox_client import REDIRECT_URI, SandboxClient, callback_query
from tests.helpers.servers import LONG, eventually

pytestmark = pytest.mark.slow

PAGE = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
PROGRAM = {"Accept": "application/json"}
FRONTEND = "http://127.0.0.1:5000/api/docs"
RESULTS = {
    f"{FRONTEND}?spotify={result}"
    for result in (
        "connected",
        "denied",
        "error-spotify-state-mismatch",
        "error-spotify-account-in-use",
        "error-spotify-account-mismatch",
        "error-spotify-unavailable",
        "error-spotify-rate-limited",
        "error-spotify-misconfigured",
        "error-service-unavailable",
        "error-validation-error",
        "error-not-signed-in",
    )
}

# For tests that do not depend on the kind of database.
ONE_DATABASE = pytest.mark.sqlite_only

NewClient = Callable[[], FlaskClient]
Query = dict[str, str] | str


@pytest.fixture(autouse=True)
def _capture_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app")


def logged(caplog: pytest.LogCaptureFixture, event: str, field: str) -> list[Any]:
    """Return the values of a field in all records of an event."""
    return [vars(record)[field] for record in caplog.records if record.getMessage() == event]


def visit(client: FlaskClient, query: Query, accept: dict[str, str], **headers: str) -> TestResponse:
    return client.get("/api/spotify/authorize", query_string=query, headers=accept | headers)


def navigate(client: FlaskClient, callback: str) -> TestResponse:
    """Send a callback as a browser does if the redirect URI is at the API."""
    return visit(client, callback_query(callback), PAGE)


def result(response: TestResponse) -> str:
    """Return the result in the redirect to the SPA. Fails if there is none."""
    assert response.status_code == 303, response.text
    assert response.headers["Location"] in RESULTS
    return response.headers["Location"].partition("?spotify=")[2]


def token_calls(sandbox: SandboxClient) -> int:
    return len(sandbox.calls(path="/api/token"))


def stored(app: Flask) -> list[Any]:
    """Return all columns of all connections and tokens, as stored."""
    with app.app_context(), reading() as db:
        return [
            [tuple(row) for row in db.execute(table.select())]
            for table in (SpotifyUser.__table__, AccessToken.__table__)
        ]


def accounts_and_owners(app: Flask) -> list[tuple[str, int | None]]:
    with app.app_context(), reading() as db:
        return [(found.spotify_id, found.user_id) for found in db.scalars(sa.select(SpotifyUser))]


@contextmanager
def in_flight(client: FlaskClient, callback: str, sandbox: SandboxClient) -> Iterator["Future[TestResponse]"]:
    """Send a callback that waits for Spotify until the block ends."""
    tab = another_tab(client)
    sandbox.fault(on="me", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        callback_under_way = pool.submit(send_callback, tab, callback)
        try:
            sandbox.wait_for_held(1)
            yield callback_under_way
        finally:
            sandbox.release()


# --- D1: a state must be unused, fresh, and from the same session -------------------------------------


def missing(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> tuple[FlaskClient, dict[str, str]]:
    callback = callback_query(sandbox.consent(start_authorization(client)))
    return client, {"code": callback["code"]}


def unknown(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> tuple[FlaskClient, dict[str, str]]:
    callback = callback_query(sandbox.consent(start_authorization(client)))
    return client, {**callback, "state": "A" * 43}


def used(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> tuple[FlaskClient, dict[str, str]]:
    callback = callback_query(sandbox.consent(start_authorization(client)))
    denied = visit(client, {"error": "access_denied", "state": callback["state"]}, PROGRAM)
    assert slug(denied) == "spotify-access-denied"
    return client, callback


def expired(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> tuple[FlaskClient, dict[str, str]]:
    callback = callback_query(sandbox.consent(start_authorization(client)))
    store = app.extensions["backline"].redis
    keys = store.keys("author*")
    assert len(keys) == 1
    for key in keys:
        assert 500 <= store.ttl(key) <= 600
        store.pexpire(key, 1)
    eventually(lambda: not store.exists(*keys))
    return client, callback


def another_users(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> tuple[FlaskClient, dict[str, str]]:
    other = app.test_client()
    register(other)
    return other, callback_query(sandbox.consent(start_authorization(client)))


def another_sessions(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> tuple[FlaskClient, dict[str, str]]:
    """Return a state of the same user, from another browser."""
    other = app.test_client()
    assert login(other, "ada").status_code == 200
    return other, callback_query(sandbox.consent(start_authorization(client)))


@pytest.mark.requirement("D1")
@ONE_DATABASE
@pytest.mark.parametrize("wrong", [missing, unknown, used, expired, another_users, another_sessions])
def test_wrong_state_is_rejected_without_a_token_request(
    client: FlaskClient,
    app: Flask,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[FlaskClient, Flask, SandboxClient], tuple[FlaskClient, dict[str, str]]],
) -> None:
    register(client, "ada")
    browser, query = wrong(client, app, sandbox)
    caplog.clear()

    response, page = visit(browser, query, PROGRAM), visit(browser, query, PAGE)

    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert result(page) == "error-spotify-state-mismatch"
    assert token_calls(sandbox) == 0
    assert stored(app) == [[], []]
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["spotify-state-mismatch"] * 2


# --- D2: PKCE --------------------------------------------------------------------------------------


def pending_key(state: str) -> str:
    return f"authorization:{hashlib.sha256(state.encode()).hexdigest()}"


def verifier_of(app: Flask, state: str) -> str:
    """Return the verifier of an authorization. This requires Redis and the keys."""
    with app.app_context():
        raw: Any = services().redis.get(pending_key(state))
        packed = services().redis_cipher.decrypt(pending_key(state), raw)
        assert packed is not None
        entry = msgspec.msgpack.decode(packed, type=AuthorizationRecord)
        return services().token_cipher.decrypt(entry.verifier, "verifier", pending_key(state))


def change_pending(app: Flask, state: str, **values: object) -> None:
    with app.app_context():
        raw: Any = services().redis.get(pending_key(state))
        packed = services().redis_cipher.decrypt(pending_key(state), raw)
        assert packed is not None
        changed = msgspec.msgpack.encode({**msgspec.msgpack.decode(packed), **values})
        encrypted = services().redis_cipher.encrypt(pending_key(state), changed)
        services().redis.set(pending_key(state), encrypted, keepttl=True)


@pytest.mark.requirement("D2")
@ONE_DATABASE
def test_each_authorization_sends_the_sha256_of_its_own_verifier(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    urls = [start_authorization(client) for _ in range(2)]
    queries = [callback_query(url) for url in urls]
    verifiers = [verifier_of(app, query["state"]) for query in queries]

    assert len({query["state"] for query in queries}) == len(set(verifiers)) == 2
    for query, verifier in zip(queries, verifiers, strict=True):
        assert re.fullmatch(r"[\w-]{43,128}", verifier, re.ASCII)
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        assert (query["code_challenge_method"], query["code_challenge"]) == ("S256", digest)


@pytest.mark.requirement("D2")
@ONE_DATABASE
def test_verifier_is_in_no_response_cookie_log_or_key(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    begun = client.get("/api/spotify/authorize")
    url = begun.json["authorize_url"]
    verifier = verifier_of(app, callback_query(url)["state"])
    store = app.extensions["backline"].redis
    stored = [store.get(key) for key in store.keys("author*")]

    done = send_callback(client, sandbox.consent(url))

    assert done.json["status"] == "connected"
    stored += [store.get(key) for key in store.keys("author*")]
    responses = [f"{response.headers}{response.text}" for response in (begun, done)]
    lines = map(JsonFormatter().format, caplog.records)
    assert not any(verifier in text for text in (*responses, *lines))
    assert not any(verifier.encode() in value for value in stored)


@pytest.mark.requirement("D2")
@ONE_DATABASE
def test_wrong_verifier_is_rejected_by_spotify_and_stores_nothing(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    callback = sandbox.consent(start_authorization(client))
    state = callback_query(callback)["state"]
    with app.app_context():
        wrong = services().token_cipher.encrypt("not-the-verifier-" * 3, "verifier", pending_key(state))
    change_pending(app, state, verifier=wrong)

    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (401, "spotify-access-denied")
    assert token_calls(sandbox) == 1
    assert stored(app) == [[], []]
    assert connect(client, sandbox)["status"] == "connected"


@pytest.mark.requirement("D2")
@ONE_DATABASE
@pytest.mark.parametrize("damage", ["no msgpack", "another flow's", "damaged", "an unknown status"])
def test_tampered_authorization_is_rejected_immediately(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, damage: str
) -> None:
    callback = sandbox.consent(start_authorization(client))
    state, other = (callback_query(url)["state"] for url in (callback, start_authorization(client)))
    store = app.extensions["backline"].redis
    if damage == "no msgpack":
        store.set(pending_key(state), b"\xc1")
    elif damage == "another flow's":
        store.restore(pending_key(state), 0, store.dump(pending_key(other)), replace=True)
    elif damage == "damaged":
        change_pending(app, state, verifier=b"\x00" * 60)
    else:
        change_pending(app, state, status="somehow")

    began = time.monotonic()
    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert time.monotonic() - began < LONG  # it does not wait for a duplicate
    assert token_calls(sandbox) == 0


# --- D3: duplicate callbacks -----------------------------------------------------------------------


@pytest.mark.requirement("D3")
@ONE_DATABASE
@pytest.mark.parametrize("signed_in", [True, False], ids=["user", "visitor"])
def test_reloaded_callback_has_the_same_response_from_any_worker(
    client: FlaskClient, another_worker: Flask, app: Flask, sandbox: SandboxClient, signed_in: bool
) -> None:
    if signed_in:
        register(client)
    callback = sandbox.consent(start_authorization(client))
    first = navigate(client, callback)
    before = stored(app)

    again = navigate(client, callback)
    elsewhere = navigate(another_tab(client, another_worker), callback)

    assert [result(response) for response in (first, again, elsewhere)] == ["connected"] * 3
    assert first.data == again.data == elsewhere.data
    assert token_calls(sandbox) == 1
    assert stored(app) == before


@ONE_DATABASE
@pytest.mark.requirement("D3")
@pytest.mark.parametrize("signed_in", [True, False], ids=["user", "visitor"])
def test_twenty_duplicate_callbacks_make_one_token_request(
    client: FlaskClient,
    app: Flask,
    another_worker: Flask,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    signed_in: bool,
) -> None:
    if signed_in:
        register(client)
    callback = sandbox.consent(start_authorization(client))
    waiting, wait_for_result = threading.Semaphore(0), AuthorizationStore.wait_for_result

    def counted(
        store: AuthorizationStore, state: str, code: str | None, user_id: int | None, waiter: Waiter
    ) -> ConnectionRef | None:
        waiting.release()
        return wait_for_result(store, state, code, user_id, waiter)

    monkeypatch.setattr(AuthorizationStore, "wait_for_result", counted)
    tabs = [another_tab(client, worker) for worker in (app, another_worker) for _ in range(10)]
    sandbox.fault(on="code", kind="park", times=1)
    with ThreadPoolExecutor(20) as pool:
        responses = [pool.submit(navigate, tab, callback) for tab in tabs]
        try:
            sandbox.wait_for_held(1)
            assert all(waiting.acquire(timeout=LONG) for _ in range(19))
        finally:
            sandbox.release()

    assert [result(response.result()) for response in responses] == ["connected"] * 20
    assert len({response.result().data for response in responses}) == 1
    # Whichever cookie the browser keeps, its session is connected.
    assert {tab.get("/api/spotify").json["status"] for tab in tabs} == {"connected"}
    assert token_calls(sandbox) == 1
    assert [len(table) for table in stored(app)] == [1, 1]
    assert len(logged(caplog, "spotify_connected", "spotify_user_id")) == 1
    assert logged(caplog, "spotify_callback_rejected", "reason") == []


# --- D4: redirect targets --------------------------------------------------------------------------

HOSTILE_HEADERS = {
    "Host": {"Host": "evil.example"},
    "Host with a port": {"Host": "127.0.0.1:5000@evil.example"},
    "X-Forwarded-Host": {"X-Forwarded-Host": "evil.example"},
    "X-Forwarded-Proto and -Port": {"X-Forwarded-Proto": "https", "X-Forwarded-Port": "4443"},
    "X-Forwarded-Prefix": {"X-Forwarded-Prefix": "//evil.example"},
    "X-Forwarded-Server": {"X-Forwarded-Server": "evil.example", "X-Host": "evil.example"},
    "Forwarded": {"Forwarded": "for=1.2.3.4;host=evil.example;proto=https"},
    "X-Original-URL": {"X-Original-URL": "//evil.example/", "X-Rewrite-URL": "//evil.example/"},
    "Referer and Origin": {"Referer": "https://evil.example/", "Origin": "https://evil.example"},
}


@pytest.mark.requirement("D4")
@pytest.mark.settings(TRUSTED_PROXIES="1")
@ONE_DATABASE
def test_headers_do_not_change_redirect_targets(new_client: NewClient, sandbox: SandboxClient) -> None:
    for headers in HOSTILE_HEADERS.values():
        client = new_client()
        if "Host" in headers:
            client.environ_base["HTTP_HOST"] = headers["Host"]

        begun = visit(client, "", PROGRAM, **headers)
        sent_on = visit(client, "", PAGE, **headers)
        url = begun.json["authorize_url"]
        done = visit(client, callback_query(sandbox.consent(url)), PAGE, **headers)

        for target in (url, sent_on.headers["Location"]):
            assert target.startswith(f"{sandbox.accounts_url}/authorize?")
            assert callback_query(target)["redirect_uri"] == REDIRECT_URI
        # Spotify accepts a code only with the redirect URI that it was issued for.
        assert result(done) == "connected"
        assert "evil" not in f"{begun.headers}{sent_on.headers}{sent_on.text}{done.headers}{done.text}"


@pytest.mark.requirement("D4")
@ONE_DATABASE
def test_parameters_do_not_change_redirect_targets(new_client: NewClient, sandbox: SandboxClient) -> None:
    names = ("next", "redirect", "redirect_uri", "return_to", "url", "spotify", "FRONTEND_URL", "scope")
    for target in (
        "//evil.example",
        "/\\evil.example",
        "https:evil.example",
        "https://evil.example/",
        "javascript:alert('evil')",
        "ok\r\nLocation: https://evil.example",
        "ok\r\n\r\n<script>evil</script>",
        "\u560d\u560aLocation: https://evil.example",
    ):
        client, further = new_client(), dict.fromkeys(names, target)
        # In a callback, `return_to` and `scope` are ignored. Elsewhere, they are rejected.
        start = {name: value for name, value in further.items() if name not in ("return_to", "scope")}
        sent_on = visit(client, start, PAGE)
        callback = callback_query(sandbox.consent(sent_on.headers["Location"]))
        done = visit(client, {**further, **callback}, PAGE)
        client.delete("/api/spotify")
        rejected = [visit(client, {**further, name: target}, PAGE) for name in ("code", "error")]
        rejected.append(visit(client, {"code": target, "error": target, "state": target}, PAGE))

        assert callback_query(sent_on.headers["Location"])["redirect_uri"] == REDIRECT_URI
        assert result(done) == "connected"
        assert [result(response) for response in rejected] == ["error-spotify-state-mismatch"] * 3
        for response in (sent_on, done, *rejected):
            assert "evil" not in f"{response.headers}{response.text}"
            assert len(response.headers.getlist("Location")) == 1


# --- D5: one authorization server ------------------------------------------------------------------


@pytest.mark.requirement("D5")
@ONE_DATABASE
def test_parameter_naming_another_issuer_is_ignored(client: FlaskClient, sandbox: SandboxClient) -> None:
    """The only server sends no `iss`, and unknown parameters are ignored (RFC 6749 section 4.1.2).

    The mix-up attack that `iss` prevents (RFC 9207) requires a second server.
    """
    callback = callback_query(sandbox.consent(start_authorization(client)))
    issuer = "https://evil.example"

    response = visit(client, {**callback, "iss": issuer, "issuer": issuer, "token_endpoint": issuer}, PAGE)

    assert result(response) == "connected"
    [exchange] = sandbox.calls(path="/api/token")
    assert exchange["status"] == 200


@pytest.mark.requirement("D5")
@pytest.mark.settings(SPOTIFY_ACCOUNTS_URL="https://accounts.example.com")
@ONE_DATABASE
def test_authorization_server_comes_from_the_settings_only(client: FlaskClient) -> None:

    further = {"iss": "https://evil.example", "authorization_endpoint": "https://evil.example/authorize"}
    response = visit(client, further, PAGE)

    assert response.headers["Location"].startswith("https://accounts.example.com/authorize?")
    assert "evil" not in response.headers["Location"]


# --- D6: one Spotify account, one owner ------------------------------------------------------------


def sign_in_three_times(app: Flask, name: str) -> list[FlaskClient]:
    clients = [app.test_client() for _ in range(3)]
    register(clients[0], name)
    for client in clients[1:]:
        assert login(client, name).status_code == 200
    return clients


@pytest.mark.requirement("D6")
def test_concurrent_callbacks_of_two_users_make_one_owner(
    app: Flask, another_worker: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Three sessions each, three authorizations in each, half of them on another worker."""
    names, workers = ("ada", "bob"), (app, another_worker)
    sessions = {name: sign_in_three_times(app, name) for name in names}
    with requests.Session() as person:
        person.trust_env = False
        callbacks = [
            (name, another_tab(client, workers[number % 2]), sandbox.consent(url, browser=person))
            for name in names
            for client in sessions[name]
            for number, url in enumerate(start_authorization(client) for _ in range(3))
        ]
        late = [
            (client, sandbox.consent(start_authorization(client), browser=person))
            for name in names
            for client in sessions[name]
        ]
    sandbox.fault(on="me", kind="park", times=18)
    with ThreadPoolExecutor(18) as pool:
        responses = [(name, pool.submit(send_callback, tab, callback)) for name, tab, callback in callbacks]
        try:
            sandbox.wait_for_held(18)
        finally:
            sandbox.release()
    by_user = {
        name: [(future.result().status_code, future.result()) for of, future in responses if of == name]
        for name in names
    }

    [(spotify_id, owner_id)] = accounts_and_owners(app)
    with app.app_context(), reading() as db:
        owner = db.get_one(User, owner_id).username
    [loser] = set(names) - {owner}
    assert spotify_id == "mira_t_42"
    assert [status for status, _ in by_user[owner]] == [200] * 9
    assert {slug(response) for _, response in by_user[loser]} == {"spotify-account-in-use"}
    assert [status for status, _ in by_user[loser]] == [409] * 9
    assert [len(table) for table in stored(app)] == [1, 1]
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["spotify-account-in-use"] * 9
    assert len(logged(caplog, "spotify_connected", "spotify_user_id")) == 9
    assert len(set(logged(caplog, "spotify_connected", "spotify_user_id"))) == 1

    # From now on, the owner's rows do not change.
    before = stored(app)
    for client, callback in late:
        if client in sessions[loser]:
            assert slug(send_callback(client, callback)) == "spotify-account-in-use"
            assert client.get("/api/spotify").json == {"status": "not_connected"}
            assert client.get("/api/spotify/token").status_code == 409
    assert stored(app) == before
    sandbox.clear_calls()
    assert {client.get("/api/spotify/token").status_code for client in sessions[owner]} == {200}
    assert sandbox.calls() == []


@pytest.mark.requirement("D6")
def test_account_in_use_does_not_reveal_its_owner(
    new_client: NewClient, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    owner, other = new_client(), new_client()
    register(owner, "ada")
    connect(owner, sandbox)
    register(other, "bob")
    one, two = (sandbox.consent(start_authorization(other)) for _ in range(2))
    caplog.clear()

    rejected, page = send_callback(other, one), navigate(other, two)

    assert (rejected.status_code, slug(rejected)) == (409, "spotify-account-in-use")
    assert result(page) == "error-spotify-account-in-use"
    assert not any(word in rejected.text + page.text for word in ("ada", "mira", "Mira"))
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["spotify-account-in-use"] * 2
    assert logged(caplog, "spotify_connected", "spotify_user_id") == []


# --- D7: an attacker's callback in the victim's browser --------------------------------------------


@pytest.mark.requirement("D7")
@ONE_DATABASE
@pytest.mark.parametrize("victim_is", ["new", "a visitor", "signed in", "connected"])
def test_callback_of_an_attacker_changes_nothing_for_the_victim(
    new_client: NewClient,
    app: Flask,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    victim_is: str,
) -> None:
    attacker, victim = new_client(), new_client()
    register(attacker, "mallory")
    callback = sandbox.consent(start_authorization(attacker), person="aiko-87")
    if victim_is == "a visitor":
        start_authorization(victim)
    elif victim_is != "new":
        register(victim, "ada")
    if victim_is == "connected":
        connect(victim, sandbox)
    spotify, before = victim.get("/api/spotify").json, stored(app)
    sandbox.clear_calls()
    caplog.clear()

    response, page = (visit(victim, callback_query(callback), accept) for accept in (PROGRAM, PAGE))

    if victim_is == "connected":  # to its own account, as before
        assert (response.json["status"], result(page)) == ("connected", "connected")
    else:
        assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
        assert result(page) == "error-spotify-state-mismatch"
    assert "Set-Cookie" not in {*response.headers.keys(), *page.headers.keys()}
    assert victim.get("/api/spotify").json == spotify
    assert stored(app) == before
    assert sandbox.calls() == []
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["spotify-state-mismatch"] * 2
    # The attempt consumes no state of the attacker's session either.
    assert send_callback(attacker, callback).json["spotify"]["spotify_id"] == "aiko-87"


# --- D8: the session ends during the callback ---------------------------------------------------------------


@pytest.mark.requirement("D8")
@ONE_DATABASE
@pytest.mark.parametrize("then", ["nobody", "the same user", "another user"])
def test_callback_in_progress_connects_nothing_after_a_logout(
    client: FlaskClient,
    app: Flask,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    then: str,
) -> None:
    register(app.test_client(), "bob")
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    with in_flight(client, callback, sandbox) as response:
        client.post("/api/logout")
        if then != "nobody":
            login(client, "ada" if then == "the same user" else "bob")

    assert (response.result().status_code, slug(response.result())) == (401, "not-signed-in")
    assert "Set-Cookie" not in response.result().headers
    assert stored(app) == [[], []]
    assert client.get("/api/spotify").json == {"status": "not_connected"}
    assert client.get("/api/session").json["authenticated"] is (then != "nobody")
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["not-signed-in"]


@pytest.mark.requirement("D8")
@ONE_DATABASE
@pytest.mark.parametrize(
    "change",
    [{"session_epoch": User.session_epoch + 1}, {"disabled_at": sa.func.now()}],
    ids=["epoch", "disabled"],
)
def test_callback_in_progress_connects_nothing_once_the_sessions_have_ended(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, change: dict[str, Any]
) -> None:
    """A password reset, or an operator, ends them in the database first, and then in Redis.

    Otherwise, someone whose access has just ended could add their own Spotify account.
    """
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    with in_flight(client, callback, sandbox) as response, app.app_context(), writing() as db:
        announce(db, users=db.scalars(sa.select(User.id)))
        db.execute(sa.update(User).values(change))

    assert (response.result().status_code, slug(response.result())) == (401, "not-signed-in")
    assert stored(app) == [[], []]


@pytest.mark.requirement("D8")
@ONE_DATABASE
@pytest.mark.parametrize("leaves_by", ["registering", "signing in", "signing out"])
def test_visitor_who_leaves_during_a_callback_leaves_no_connection(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, leaves_by: str
) -> None:
    """It would be stored for thirty days, although no one could use or delete it."""
    register(app.test_client(), "ada")
    callback = sandbox.consent(start_authorization(client))
    with in_flight(client, callback, sandbox) as response:
        if leaves_by == "registering":
            register(client, "bob")
        elif leaves_by == "signing in":
            login(client, "ada")
        else:
            client.post("/api/logout")

    assert slug(response.result()) == "spotify-state-mismatch"
    assert stored(app) == [[], []]
    assert connect(client, sandbox)["spotify_id"] == "mira_t_42"


@pytest.mark.requirement("D8")
@ONE_DATABASE
def test_ended_session_connects_as_a_new_visitor(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """As after a new password. Otherwise, no one could use or delete the connection."""
    register(client, "ada")
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).values(session_epoch=User.session_epoch + 1))

    connected = connect(client, sandbox)

    assert client.get("/api/spotify").json == connected
    assert client.get("/api/session").json["authenticated"] is False
    assert accounts_and_owners(app) == [("mira_t_42", None)]


# --- D9: another account, and late refreshes -------------------------------------------------------


@pytest.mark.requirement("D9")
@ONE_DATABASE
@pytest.mark.parametrize("then", [None, "mira_t_42", "aiko-87"], ids=["no more", "the same", "another"])
def test_late_refresh_does_not_undo_a_disconnect_or_new_connection(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, then: str | None
) -> None:
    register(client)
    connect(client, sandbox, person="mira_t_42")
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(expires_at=datetime.now(UTC) - timedelta(minutes=1)))
    tab = another_tab(client)
    sandbox.fault(on="refresh", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(tab.get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        assert client.delete("/api/spotify").status_code == 204
        if then is not None:
            connect(client, sandbox, person=then)
        before = stored(app)
        sandbox.release()

    assert (late.result().status_code, slug(late.result())) == (409, "spotify-not-connected")
    assert stored(app) == before
    assert [len(table) for table in before] == [then is not None] * 2


# --- D10: arbitrary input --------------------------------------------------------------------------

MARK = "Zq9Reflected"
REJECTIONS = ("spotify-state-mismatch", "spotify-unavailable", "validation-error")
BODIES: dict[str, bytes] = {}
"""The response body for each result, which must not depend on the request."""

values = st.one_of(
    st.text(max_size=50).map(str.encode),
    st.binary(max_size=50),
    st.sampled_from(
        [
            b"access_denied",
            b"server_error",
            b"<script>alert(1)</script>",
            b'"><img src=//evil.example>',
            b"\r\nSet-Cookie: backline_session=evil",
            b"\x00\xff\xfe",
            b"${jndi:ldap://evil.example}",
            b"' OR 1=1 --",
            b"x" * 65_536,
            "\U0001f3b5".encode() * 16_384,
        ]
    ),
).map(lambda value: MARK.encode() + value)
parameters = st.lists(
    st.tuples(
        st.sampled_from(
            ["code", "error", "state", "iss", "next", "spotify", "error_description", "code[]", ""]
        ),
        st.one_of(values, st.just(b"")),
    ),
    max_size=5,
)


@pytest.mark.requirement("D10")
@ONE_DATABASE
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    one=st.tuples(st.sampled_from(["code", "error"]), values),
    others=parameters,
    with_state=st.booleans(),
    accept=st.sampled_from([PAGE, PAGE, PROGRAM]),
)
def test_arbitrary_callback_gets_a_fixed_result_and_no_reflection(
    client: FlaskClient,
    one: tuple[str, bytes],
    others: list[tuple[str, bytes]],
    with_state: bool,
    accept: dict[str, str],
) -> None:
    # A rejected callback does not end its authorization, and a session can have only 30.
    client.application.extensions["backline"].redis.flushdb()
    pairs = [*others, one]
    if with_state:
        pairs.append(("state", callback_query(start_authorization(client))["state"].encode()))
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)

    response = visit(client, query, accept)

    if accept is PAGE:
        found = result(response)
        assert found in ("denied", *(f"error-{slug}" for slug in REJECTIONS))
        assert BODIES.setdefault(found, response.data) == response.data
    else:
        assert slug(response) in ("spotify-access-denied", *REJECTIONS)
    sent_back = f"{response.headers}{response.text}"
    assert MARK not in sent_back
    assert "evil" not in sent_back
    assert "x" * 100 not in sent_back


@pytest.mark.requirement("D10")
@ONE_DATABASE
def test_callback_with_code_and_error_is_an_error(client: FlaskClient, sandbox: SandboxClient) -> None:
    callback = callback_query(sandbox.consent(start_authorization(client)))

    assert result(visit(client, {**callback, "error": "server_error"}, PAGE)) == "error-spotify-unavailable"
    assert token_calls(sandbox) == 0


@pytest.mark.requirement("D10")
@ONE_DATABASE
def test_repeated_parameter_is_rejected_and_logged(
    client: FlaskClient, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    callback = callback_query(sandbox.consent(start_authorization(client)))
    for twice in ("code", "state", "error"):
        query = urlencode([*callback.items(), (twice, "a"), (twice, "b")])
        response, page = visit(client, query, PROGRAM), visit(client, query, PAGE)
        assert (response.status_code, response.json["errors"]) == (422, {twice: ["Must not be repeated."]})
        assert result(page) == "error-validation-error"

    assert token_calls(sandbox) == 0
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["validation-error"] * 6


@ONE_DATABASE
@pytest.mark.parametrize(
    ("query", "repeated", "is_callback"),
    [
        ("code=&code=a", ["code"], True),
        ("code=a&state=b&state=c&error=d&error=e", ["error", "state"], True),
        ("reauthorize=true&reauthorize=true", ["reauthorize"], False),
        ("code=&code=&state=b", ["code"], False),
        ("code=&error=&state=b", [], False),
    ],
)
def test_empty_parameters_count_as_absent_unless_repeated(
    client: FlaskClient,
    caplog: pytest.LogCaptureFixture,
    query: str,
    repeated: list[str],
    is_callback: bool,
) -> None:
    response = visit(client, query, PROGRAM)

    if repeated:
        assert response.json["errors"] == {name: ["Must not be repeated."] for name in repeated}
    else:
        assert response.json["status"] == "authorization_required"
    rejected = ["validation-error"] if is_callback else []
    assert logged(caplog, "spotify_callback_rejected", "reason") == rejected


# --- D11: headers and logs -------------------------------------------------------------------------


@pytest.mark.requirement("D11")
@ONE_DATABASE
@pytest.mark.parametrize("accept", [PROGRAM, PAGE], ids=["program", "page"])
@pytest.mark.parametrize("outcome", ["connected", "denied", "failed"])
def test_callback_response_is_not_cached_and_has_no_referrer(
    client: FlaskClient,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    outcome: str,
    accept: dict[str, str],
) -> None:
    caplog.set_level(logging.DEBUG)
    decision = "cancel" if outcome == "denied" else "agree"
    callback = callback_query(sandbox.consent(start_authorization(client), decision=decision))
    if outcome == "failed":
        start_authorization(client)
        callback["state"] = callback["state"].swapcase()
    caplog.clear()  # by the HTTP client of the simulated browser, in this process

    response = visit(client, callback, accept)

    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "Refresh" not in response.headers
    if accept is PAGE:
        assert response.status_code == 303
        assert all(
            url.startswith(FRONTEND) for url in re.findall(r"(?:https?:)?//[^\"'<>\s]+", response.text)
        )
        assert not re.search(r"<(?:script|img|link|iframe|style|form)\b", response.text)
    # Including lines of libraries.
    lines = "\n".join(map(JsonFormatter().format, caplog.records))
    assert '"route":"/api/spotify/authorize"' in lines
    assert not any(callback[name] in lines for name in ("code", "state") if name in callback)


# --- D12: scopes -----------------------------------------------------------------------------------


@pytest.mark.requirement("D12")
@ONE_DATABASE
@pytest.mark.settings(SPOTIFY_SCOPES="user-top-read user-read-private")
def test_requested_scopes_come_from_the_settings(client: FlaskClient, sandbox: SandboxClient) -> None:
    url = start_authorization(client)

    assert parse_qs(urlsplit(url).query)["scope"] == ["user-top-read user-read-private"]
    spotify = send_callback(client, sandbox.consent(url)).json["spotify"]
    assert sorted(spotify["scopes"]) == ["user-read-private", "user-top-read"]
    response = client.get("/api/spotify/token")
    assert (response.status_code, slug(response)) == (403, "insufficient-scope")


@pytest.mark.requirement("D12")
@ONE_DATABASE
def test_new_consent_to_fewer_scopes_replaces_the_old_scopes(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client)
    one, two = start_authorization(client), start_authorization(client)
    send_callback(client, sandbox.consent(one))
    assert client.get("/api/spotify/token").status_code == 200
    sandbox.settings(granted_scopes=["user-read-private"])

    spotify = send_callback(client, sandbox.consent(two)).json["spotify"]

    assert spotify["scopes"] == ["user-read-private"]
    response = client.get("/api/spotify/token")
    assert (response.status_code, slug(response)) == (403, "insufficient-scope")


# --- what is logged --------------------------------------------------------------------------------


@ONE_DATABASE
def test_connecting_and_disconnecting_are_each_logged_once(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    register(client)
    connect(client, sandbox)
    client.get("/api/spotify/authorize")
    [[row], _] = stored(app)

    client.delete("/api/spotify")
    client.delete("/api/spotify")

    assert logged(caplog, "spotify_connected", "spotify_user_id") == [row[0]]
    assert logged(caplog, "spotify_disconnected", "spotify_user_id") == [row[0]]
    assert logged(caplog, "spotify_callback_rejected", "reason") == []


@ONE_DATABASE
@pytest.mark.parametrize("accept", [PROGRAM, PAGE], ids=["program", "page"])
def test_each_rejected_callback_is_logged_with_its_reason(
    client: FlaskClient,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
    accept: dict[str, str],
) -> None:
    one, two = start_authorization(client), start_authorization(client)
    visit(client, "", accept)
    visit(client, "state=alone&code=&error=", accept)
    assert logged(caplog, "spotify_callback_rejected", "reason") == []

    visit(client, callback_query(sandbox.consent(one, decision="cancel")), accept)
    sandbox.fault(on="code", kind="google_502", times=1)
    visit(client, callback_query(sandbox.consent(two)), accept)
    visit(client, "code=a", accept)

    assert logged(caplog, "spotify_callback_rejected", "reason") == [
        "spotify-access-denied",
        "spotify-unavailable",
        "spotify-state-mismatch",
    ]


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
@ONE_DATABASE
def test_failure_without_a_callback_is_not_logged_as_a_rejection(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:

    assert result(visit(client, "", PAGE)) == "error-service-unavailable"
    assert logged(caplog, "spotify_callback_rejected", "reason") == []
    assert result(visit(client, "code=a&state=b", PAGE)) == "error-service-unavailable"
    assert logged(caplog, "spotify_callback_rejected", "reason") == ["service-unavailable"]


def test_connection_is_deleted_once(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    """Otherwise, two concurrent requests would both log a disconnect."""
    connect(client, sandbox)
    with app.app_context():
        with reading() as db:
            spotify_user = cast("Any", db.scalars(sa.select(SpotifyUser)).one())

        assert [services().connections.delete(spotify_user) for _ in range(2)] == [True, False]
