"""Bearer tokens: what they may do on every route, which headers present one, and when they stop working."""

import logging
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.auth import personal_access_tokens
from app.infra import database
from app.infra.bearer_token import new_token
from app.infra.database import db, reading, writing
from app.models import AccessToken, GrantState, PersonalAccessToken, Right, User
from app.web.bearer import UNKNOWN_TOKENS_PER_HOUR
from tests.conftest import SPA_ORIGIN
from tests.helpers.factories import advance_time
from tests.helpers.flows import PASSWORD, connect, create_token, register, slug
from tests.helpers.round_trips import counting
from tests.helpers.route_matrix import (
    Route,
    Snapshot,
    documented,
    every_route,
    valid_body,
    wait_for_background_work,
)
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.sqlite_only

NewClient = Callable[[], FlaskClient]
READ, WRITE, ACCOUNT = Right.SPOTIFY_READ, Right.SPOTIFY_WRITE, Right.ACCOUNT_READ
CHALLENGE = 'Bearer error="invalid_token"'


@pytest.fixture
def ada(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """A person who is signed in and connected."""
    register(client, "ada")
    connect(client, sandbox)
    wait_for_background_work(client.application)  # sending the confirmation changes the account's version
    return client


@pytest.fixture
def token(ada: FlaskClient) -> str:
    """A token of hers, with all rights."""
    return create_token(ada)


@pytest.fixture
def script(app: Flask) -> FlaskClient:
    """A client without cookies that sends none of the headers of the SPA."""
    client = app.test_client()
    client.environ_base = {"HTTP_ACCEPT": "*/*", "REMOTE_ADDR": "127.0.0.1"}
    return client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def status(script: FlaskClient, token: str, path: str = "/api/user") -> int:
    return script.get(path, headers=bearer(token)).status_code


def assert_rejected(response: TestResponse) -> None:
    assert (response.status_code, slug(response)) == (401, "invalid-bearer-token")
    assert response.headers["WWW-Authenticate"] == CHALLENGE
    assert "Set-Cookie" not in response.headers


# --- rights ------------------------------------------------------------------------------------------

# The rights of which a token needs one. Every other route rejects all tokens.
NEEDED = {
    "GET /api/session": {*Right},
    "GET /api/user": {ACCOUNT},
    "GET /api/spotify": {READ},
}


def needed(route: Route) -> set[Right]:
    if route.is_gateway:
        return {WRITE if route.writes else READ}
    return NEEDED.get(str(route), set())


@pytest.mark.requirement("G1")
def test_every_route_with_a_token_that_has_one_right(
    ada: FlaskClient, app: Flask, script: FlaskClient
) -> None:
    tokens = {right: create_token(ada, right) for right in Right}
    document, routes = documented(app), every_route(app)
    for token in tokens.values():
        assert status(script, token, "/api/session") == 200  # records its use
    wait_for_background_work(app)
    before, allowed = Snapshot(app), 0
    for route in routes:
        if not route.rule.startswith(("/api/", "/v1/")):
            continue
        for right, token in tokens.items():
            response = script.open(
                route.path, method=route.method, headers=bearer(token), json=valid_body(document, route)
            )
            assert "Set-Cookie" not in response.headers, route
            assert "Cookie" not in response.headers.get("Vary", ""), route
            if right in needed(route):
                assert response.mimetype != "application/problem+json", (route, right)  # may be Spotify's 404
                allowed += 1
            else:
                assert (response.status_code, slug(response)) == (403, "insufficient-rights"), (route, right)
                assert response.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"', route
    assert allowed >= 3 + 1 + 1 + 4
    assert Snapshot(app) == before


@pytest.mark.requirement("G1")
def test_every_route_with_a_token_that_is_not_valid(
    ada: FlaskClient, app: Flask, script: FlaskClient, token: str
) -> None:
    wait_for_background_work(app)
    document, before = documented(app), Snapshot(app)
    for route in every_route(app):
        if route.rule.startswith(("/api/", "/v1/")):
            body = valid_body(document, route)
            for client in (script, ada):  # the cookie of a person who is signed in does not help
                response = client.open(route.path, method=route.method, headers=bearer("x"), json=body)
                assert_rejected(response)
    assert Snapshot(app) == before


def test_probes_ignore_tokens(script: FlaskClient, app: Flask) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert status(script, "a token of the monitoring system", path) == 200


def test_session_shows_what_the_token_may_read(ada: FlaskClient, script: FlaskClient) -> None:
    def session(*rights: Right) -> dict[str, bool]:
        shown = script.get("/api/session", headers=bearer(create_token(ada, *rights))).json
        return {name: bool(value) for name, value in shown.items()}

    assert session(READ, ACCOUNT) == {"authenticated": True, "user": True, "spotify": True}
    assert session(READ) == {"authenticated": True, "user": False, "spotify": True}
    assert session(ACCOUNT) == {"authenticated": True, "user": True, "spotify": False}
    assert session(WRITE) == {"authenticated": True, "user": False, "spotify": False}


def test_rights_are_documented(app: Flask) -> None:
    document = documented(app)
    assert document["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"
    for route in every_route(app):
        operation = document["paths"].get(route.template, {}).get(route.method.lower())
        if operation is not None:
            [*found] = [
                set(scheme["bearerAuth"]) for scheme in operation["security"] if "bearerAuth" in scheme
            ]
            assert found == ([needed(route)] if needed(route) else []), route


# --- which headers present a token ----------------------------------------------------------------------


def test_token_is_accepted(script: FlaskClient, token: str) -> None:
    for scheme in ("Bearer ", "bearer ", "BEARER ", " Bearer  ", "Bearer    "):
        shown = script.get("/api/user", headers={"Authorization": f"{scheme}{token} "})
        assert (shown.status_code, shown.json["username"]) == (200, "ada"), scheme


MALFORMED = {
    "nothing": "Bearer",
    "a blank": "Bearer ",
    "a cookie": "Bearer " + "A" * 43,
    "a token of Spotify": "Bearer BQ" + "x" * 200,
    "a JWT": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
    "a long one": "Bearer " + "a" * 7000,
    "bytes": "Bearer \xff\xfe",
    "a NUL": "Bearer a\x00b",
    "a mistyped one": "Bearer {token}x",
    "a truncated one": "Bearer {token:.55}",
    "two": "Bearer {token} {token}",
    "two with a comma": "Bearer {token},{token}",
    "two headers in one": "Bearer {token}, Bearer {token}",
    "a quoted one": 'Bearer "{token}"',
    "a parameter": "Bearer token={token}",
    "other digits": "Bearer {token:.50}" + ("\N{FULLWIDTH DIGIT ZERO}" * 6).encode().decode("latin-1"),
}


def test_malformed_token_is_rejected_without_io(ada: FlaskClient, app: Flask, token: str) -> None:
    for kind, header in MALFORMED.items():
        sent = {"Authorization": header.format(token=token)}
        with counting(app) as made:
            assert_rejected(ada.get("/api/user", headers=sent))
            assert_rejected(ada.patch("/api/user", json={"username": "eve"}, headers=sent))
            assert_rejected(ada.get("/api/spotify/v1/me", headers=sent))
        assert made.counts == (0, 0), kind


def test_two_authorization_headers_are_rejected(script: FlaskClient, token: str) -> None:
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]

    assert_rejected(script.get("/api/user", headers=twice))


def test_other_schemes_are_ignored(ada: FlaskClient, script: FlaskClient, token: str) -> None:
    for header in ("Basic YTpi", "Digest x", f"Bearer\t{token}", f"Bearerx {token}", token, ""):
        sent = {"Authorization": header}
        assert ada.get("/api/user", headers=sent).status_code == 200, header
        assert slug(script.get("/api/user", headers=sent)) == "not-signed-in", header
        # Neither does such a header exempt the cookie from the rules about other sites.
        without = {**sent, "X-Requested-With": ""}
        assert slug(ada.patch("/api/user", json={}, headers=without)) == "cross-site-request", header
        assert slug(ada.get("/api/spotify/v1/me", headers=without)) == "cross-site-request", header


def test_token_works_in_no_other_place(script: FlaskClient, token: str) -> None:
    places: list[dict[str, Any]] = [
        {"query_string": {"access_token": token}},
        {"query_string": {"token": token}},
        {"data": {"access_token": token}},
        {"json": {"access_token": token}},
        {"headers": {"X-Authorization": f"Bearer {token}"}},
        {"headers": {"Proxy-Authorization": f"Bearer {token}"}},
        {"headers": {"Cookie": f"backline_session={token}"}},
        {"headers": {"Cookie": f"access_token={token}"}},
    ]
    for place in places:
        assert slug(script.get("/api/user", **place)) == "not-signed-in", place
        assert script.get("/api/session", **place).json["authenticated"] is False, place


def test_session_id_is_no_token(ada: FlaskClient, script: FlaskClient) -> None:
    cookie = ada.get_cookie("backline_session")
    assert cookie is not None

    assert_rejected(script.get("/api/user", headers=bearer(cookie.value)))


# --- cookies, and other sites -------------------------------------------------------------------------


def test_cookie_of_another_person_is_neither_used_nor_changed(
    ada: FlaskClient, new_client: NewClient, app: Flask
) -> None:
    register(bob := new_client(), "bob")
    adas, bobs = create_token(ada), create_token(bob)
    store: redis.Redis = app.extensions["backline"].redis
    sessions = store.keys("session:*")
    for key in sessions:
        store.expire(key, 1000)

    assert bob.get("/api/user", headers=bearer(adas)).json["username"] == "ada"
    assert bob.get("/api/session", headers=bearer(adas)).json["user"]["username"] == "ada"
    assert bob.get("/api/spotify", headers=bearer(adas)).json["status"] == "connected"
    assert bob.get("/api/spotify/v1/me", headers=bearer(adas)).status_code == 200
    assert ada.get("/api/spotify", headers=bearer(bobs)).json == {"status": "not_connected"}
    assert slug(ada.get("/api/spotify/v1/me", headers=bearer(bobs))) == "spotify-not-connected"

    assert all(store.ttl(key) <= 1000 for key in sessions)  # no idle timeout was restarted
    assert bob.get("/api/user").json["username"] == "bob"


def test_request_with_a_token_needs_no_header_and_no_origin(
    script: FlaskClient, token: str, sandbox: SandboxClient
) -> None:
    sent = bearer(token) | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}

    assert script.get("/api/spotify/v1/me", headers=sent).status_code == 200
    assert script.put("/api/spotify/v1/me/player/pause", headers=sent).status_code == 204
    [call] = sandbox.calls(path="/v1/me/player/pause")
    assert call["status"] == 204


@pytest.mark.requirement("C4")
def test_write_with_a_token_that_is_not_valid_does_nothing(
    ada: FlaskClient, token: str, sandbox: SandboxClient
) -> None:
    """The cookie must not make it a request of the session, which would skip the rules about other sites."""
    sent = {"Authorization": "Bearer nonsense", "X-Requested-With": "", "Sec-Fetch-Site": "cross-site"}

    assert_rejected(ada.put("/api/spotify/v1/me/player/pause", headers=sent))
    assert_rejected(ada.delete("/api/user", json={"password": PASSWORD}, headers=sent))
    assert_rejected(ada.post("/api/logout", headers=sent))

    assert sandbox.calls(path="/v1/me/player/pause") == []
    assert ada.get("/api/user").status_code == 200


def test_drop_in_web_api_accepts_only_bearer_tokens(
    ada: FlaskClient, script: FlaskClient, token: str, sandbox: SandboxClient
) -> None:
    sandbox.clear_calls()
    for client, headers in ((ada, {}), (script, {}), (script, {"Authorization": "Basic YTpi"})):
        for method, path in (("GET", "me"), ("HEAD", "me"), ("PUT", "me/player/pause"), ("GET", "../x")):
            response = client.open(f"/v1/{path}", method=method, headers=headers)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == CHALLENGE
            if method != "HEAD":
                assert_rejected(response)
                assert response.json["error"] == {
                    "status": 401,
                    "message": "Missing/invalid/expired access token",
                }
    assert sandbox.calls() == []
    assert script.patch("/v1/me").status_code == 405

    page = script.get("/v1/me/playlists/?limit=1", headers=bearer(token))
    assert page.json["next"].startswith("http://localhost/v1/")
    same = script.get("/api/spotify/v1/me/playlists?limit=1", headers=bearer(token))
    assert (same.headers["X-Cache"], page.headers["X-Cache"]) == ("miss", "miss")
    assert same.json["next"] == page.json["next"].replace("/v1/", "/api/spotify/v1/")
    following = script.get(page.json["next"].removeprefix("http://localhost"), headers=bearer(token))
    assert following.json["items"] != page.json["items"]
    assert script.put("/v1/me/player/pause", headers=bearer(token)).status_code == 204
    assert script.get("/v1/me/../x", headers=bearer(token)).status_code == 400


def test_app_from_an_allowed_origin_may_send_a_token(script: FlaskClient, token: str) -> None:
    asks = {"Origin": SPA_ORIGIN, "Access-Control-Request-Method": "GET"}
    preflight = script.options(
        "/api/spotify/v1/me", headers=asks | {"Access-Control-Request-Headers": "authorization"}
    )
    response = script.get("/api/spotify/v1/me", headers=bearer(token) | {"Origin": SPA_ORIGIN})
    elsewhere = script.get("/api/spotify/v1/me", headers=bearer(token) | {"Origin": "https://evil.example"})

    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    assert response.headers["Access-Control-Allow-Origin"] == SPA_ORIGIN
    assert "Access-Control-Allow-Origin" not in elsewhere.headers


def test_head_and_options(script: FlaskClient, ada: FlaskClient) -> None:
    reader = bearer(create_token(ada, READ))

    assert script.head("/api/spotify/v1/me", headers=reader).status_code == 200
    assert script.head("/api/user", headers=reader).status_code == 403
    assert script.head("/api/user", headers=bearer("x")).status_code == 401
    assert script.options("/api/user", headers=bearer("x")).status_code == 200
    assert slug(script.get("/api/nothing", headers=bearer("x"))) == "not-found"


# --- validity -----------------------------------------------------------------------------------------


def change_token(app: Flask, **values: object) -> None:
    with app.app_context(), writing() as session:
        session.execute(sa.update(PersonalAccessToken).values(**values))


def in_seconds(app: Flask, seconds: float) -> Any:
    with app.app_context(), reading() as session:
        return database.db_now(session) + timedelta(seconds=seconds)


def test_token_expires(script: FlaskClient, token: str, app: Flask, sandbox: SandboxClient) -> None:
    assert status(script, token) == 200
    advance_time(app, sandbox, 90 * 86_400 - 60)
    assert status(script, token) == 200
    change_token(app, expires_at=in_seconds(app, 0))
    forget_remembered(app)

    assert_rejected(script.get("/api/user", headers=bearer(token)))


def forget_remembered(app: Flask) -> None:
    store: redis.Redis = app.extensions["backline"].redis
    for key in store.keys("version:*"):
        store.delete(key)


def test_remembered_token_expires_to_the_moment(script: FlaskClient, token: str, app: Flask) -> None:
    for _ in range(3):
        assert status(script, token) == 200
    snapshots = app.extensions["snapshots"]._entries
    [remembered] = [entry for _, entry in snapshots._entries.values() if entry.snapshot.personal_token]
    personal = remembered.snapshot.personal_token
    user = remembered.snapshot.user

    before, after = timedelta(microseconds=-1), timedelta(0)
    for offset, is_valid in ((before, True), (after, False)):
        moment = personal.read_time.database
        token_at = type(personal)(
            personal.id, personal.rights, personal.session_epoch, moment - offset, AtTime(moment)
        )
        assert token_at.is_valid_for(user) is is_valid


class AtTime:
    """A clock that stands still."""

    def __init__(self, moment: Any) -> None:
        self._moment = moment

    def now(self) -> Any:
        return self._moment


def test_expiry_further_ahead_than_any_lifetime_is_not_trusted(
    script: FlaskClient, token: str, app: Flask
) -> None:
    change_token(app, expires_at=in_seconds(app, 366 * 86_400))

    assert status(script, token) == 401


def end_by_epoch(app: Flask) -> None:
    with app.app_context(), writing() as session:
        session.scalars(sa.select(User)).one().end_sessions()


def end_by_disabling(app: Flask) -> None:
    with app.app_context(), writing() as session:
        session.scalars(sa.select(User)).one().disabled_at = database.db_now(session)


def end_by_deleting_the_row(app: Flask) -> None:
    with app.app_context(), writing() as session:
        session.execute(sa.delete(PersonalAccessToken))
    forget_remembered(app)


@pytest.mark.parametrize("end", [end_by_epoch, end_by_disabling, end_by_deleting_the_row])
@pytest.mark.parametrize("uses", [0, 3])
def test_each_of_three_things_ends_a_token(
    script: FlaskClient, token: str, app: Flask, end: Callable[[Flask], None], uses: int
) -> None:
    """The last one needs the row's version to change, as `revoke` announces; the others are the account's."""
    for _ in range(uses):
        assert status(script, token) == 200

    end(app)

    for path in ("/api/session", "/api/user", "/api/spotify", "/api/spotify/v1/me"):
        assert_rejected(script.get(path, headers=bearer(token)))


def test_revoked_token_is_rejected_at_once_by_every_worker(
    ada: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient
) -> None:
    kept, token = create_token(ada), create_token(ada)
    elsewhere = another_worker.test_client()
    for _ in range(3):
        assert [status(elsewhere, each) for each in (kept, token)] == [200, 200]
    with app.app_context():
        user = app.test_client().get("/api/user", headers=bearer(kept)).json["id"]
        with reading() as session:
            newest = session.scalars(sa.select(sa.func.max(PersonalAccessToken.id))).one()
        assert personal_access_tokens.revoke(user, newest)

    assert [status(elsewhere, each) for each in (kept, token)] == [200, 401]


# --- cost ---------------------------------------------------------------------------------------------


@pytest.mark.settings(GATEWAY_SHARE_SECONDS="60")
def test_remembered_token_takes_one_round_trip(script: FlaskClient, token: str, app: Flask) -> None:
    for path in ("/api/session", "/api/user", "/api/spotify", "/api/spotify/v1/me/player"):
        for _ in range(3):
            script.get(path, headers=bearer(token))

        with counting(app) as made:
            assert script.get(path, headers=bearer(token)).status_code in (200, 204)

        assert len(made.redis) == 1, path
        assert made.redis[0].startswith("GET GET"), path
        assert made.sql == [], path


def test_new_token_takes_one_statement(script: FlaskClient, token: str, another_worker: Flask) -> None:
    elsewhere = another_worker.test_client()
    status(elsewhere, token)  # records its use

    for expected in (["GET GET", "SET GET SET GET"], ["GET GET"]):
        with counting(another_worker) as made:
            assert status(elsewhere, token) == 200
        assert made.redis == expected
        assert made.sql.count("SELECT") == len(expected) - 1


# --- guessing -----------------------------------------------------------------------------------------


def test_guessing_is_throttled_without_locking_out_valid_tokens(
    script: FlaskClient, token: str, app: Flask, ada: FlaskClient
) -> None:
    for _ in range(UNKNOWN_TOKENS_PER_HOUR + 5):
        assert_rejected(script.get("/api/user", headers=bearer("malformed tokens do not count")))
    revoked = new_token()
    for _ in range(UNKNOWN_TOKENS_PER_HOUR):
        assert_rejected(script.get("/api/user", headers=bearer(revoked)))
    for _ in range(UNKNOWN_TOKENS_PER_HOUR - 1):
        assert_rejected(script.get("/api/user", headers=bearer(new_token())))

    throttled = script.get("/api/user", headers=bearer(new_token()))
    assert_rejected(script.get("/api/user", headers=bearer(revoked)))  # no guess

    assert (throttled.status_code, slug(throttled)) == (429, "too-many-attempts")
    assert 0 < int(throttled.headers["Retry-After"]) <= 3600
    assert status(script, token) == 200
    assert status(script, create_token(ada)) == 200
    assert ada.get("/api/user").status_code == 200
    elsewhere = {**bearer(new_token())}
    assert (
        script.get("/api/user", headers=elsewhere, environ_base={"REMOTE_ADDR": "192.0.2.7"}).status_code
        == 401
    )


# --- last use -----------------------------------------------------------------------------------------


def last_use(app: Flask) -> tuple[Any, str | None]:
    with app.app_context(), reading() as session:
        row = session.scalars(sa.select(PersonalAccessToken)).one()
        return row.last_used_at, row.last_used_ip


def test_last_use_is_recorded_once_in_a_while(script: FlaskClient, token: str, app: Flask) -> None:
    assert status(script, "x") == 401
    assert last_use(app) == (None, None)

    script.get("/api/user", headers=bearer(token), environ_base={"REMOTE_ADDR": "2001:db8::7"})
    first = last_use(app)
    assert first[1] == "2001:db8::7"
    assert abs(first[0] - in_seconds(app, 0)) < timedelta(minutes=5)
    status(script, token)
    assert last_use(app) == first
    app.extensions["bearer_tokens"]._recorded._entries.clear()  # as time does
    status(script, token)
    assert last_use(app)[1] == "127.0.0.1"


def test_request_works_although_its_use_cannot_be_recorded(
    script: FlaskClient, token: str, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert status(script, token) == 200
    app.extensions["bearer_tokens"]._recorded._entries.clear()  # as time does
    with app.app_context(), db.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.execute("ALTER TABLE personal_access_tokens RENAME TO gone")
        assert status(script, token) == 200
        driver.execute("ALTER TABLE gone RENAME TO personal_access_tokens")

    assert "token_use_not_recorded" in caplog.messages


# --- the rest -----------------------------------------------------------------------------------------


def test_ended_grant_leads_to_the_app(script: FlaskClient, token: str, app: Flask) -> None:
    before = app.extensions["backline"].redis.keys("authorization*")
    with app.app_context(), writing() as session:
        ended = {"state": GrantState.REAUTHORIZATION_REQUIRED, "expires_at": database.db_now(session)}
        session.execute(sa.update(AccessToken).values(ended))

    response = script.get("/api/spotify/v1/me", headers=bearer(token))

    assert slug(response) == "spotify-reauthorization-required"
    assert response.json["authorize_url"] == "http://127.0.0.1:5000/api/docs"
    assert "Set-Cookie" not in response.headers
    assert app.extensions["backline"].redis.keys("authorization*") == before


def test_log_shows_the_token_by_its_id(
    script: FlaskClient, token: str, caplog: pytest.LogCaptureFixture, app: Flask
) -> None:
    from app.web.request_log import RequestFields

    caplog.handler.addFilter(RequestFields())
    caplog.set_level(logging.INFO)

    status(script, token)
    status(script, new_token())

    lines: Any = [record for record in caplog.records if record.message == "request"]
    with app.app_context(), reading() as session:
        row = session.scalars(sa.select(PersonalAccessToken)).one()
    assert [(line.user_id, getattr(line, "token_id", None)) for line in lines] == [
        (row.user_id, row.id),
        (None, None),
    ]
    [rejected] = [record for record in caplog.records if record.message == "bearer_token_rejected"]
    assert vars(rejected)["reason"] == "unknown"


def test_requests_are_counted(script: FlaskClient, token: str) -> None:
    def counts() -> dict[str, float]:
        found = re.findall(
            r'backline_bearer_requests_total\{outcome="([\w-]+)"\} (\S+)', script.get("/metrics").text
        )
        return {outcome: float(count) for outcome, count in found}

    before = counts()
    status(script, token)
    status(script, token, "/api/user/sessions")
    status(script, new_token())
    status(script, "x")

    after = counts()
    changed = {name for name in after if after[name] == before.get(name, 0) + 1}
    assert changed == {"ok", "insufficient-rights", "unknown", "malformed"}
