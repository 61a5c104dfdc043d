"""`GET /api/spotify/authorize`: every branch of the flow, through the sandbox over HTTP."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, SpotifyUser, User
from tests.helpers import stored_sessions
from tests.helpers.flows import (
    another_tab,
    connect,
    refresh_count,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import eventually

pytestmark = pytest.mark.sqlite_only
BOTH_DATABASES = pytest.mark.parametrize("database_url", ["sqlite", "mariadb"], indirect=True)

NAVIGATION = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def rows(app: Flask) -> list[dict[str, Any]]:
    """Return every connection and its token, oldest first."""
    with app.app_context(), reading() as db:
        return [
            {
                "id": spotify_user.id,
                "user_id": spotify_user.user_id,
                "spotify_id": spotify_user.spotify_id,
                "account_id": spotify_user.account_id,
                "grant_id": spotify_user.token.grant_id,
                "access_token": spotify_user.token.access_token,
            }
            for spotify_user in db.scalars(sa.select(SpotifyUser).order_by(SpotifyUser.id))
        ]


def change_token(app: Flask, **values: object) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(**values))


def token_calls(sandbox: SandboxClient) -> int:
    return len(sandbox.calls(path="/api/token"))


# --- first visit ---------------------------------------------------------------------------------


def test_program_gets_the_url_at_spotify(client: FlaskClient, sandbox: SandboxClient) -> None:
    response = client.get("/api/spotify/authorize")

    assert response.status_code == 200
    assert response.json.keys() == {"status", "authorize_url"}
    assert response.json["status"] == "authorization_required"
    url = urlsplit(response.json["authorize_url"])
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{sandbox.accounts_url}/authorize"
    assert query["response_type"] == "code"
    assert query["redirect_uri"] == "http://127.0.0.1:5000/api/spotify/authorize"
    assert query["code_challenge_method"] == "S256"
    assert len(query["code_challenge"]) == 43
    assert len(query["state"]) >= 22  # 128 bits
    assert "streaming" in query["scope"].split()


def test_browser_is_redirected_to_spotify(client: FlaskClient, sandbox: SandboxClient) -> None:
    response = client.get("/api/spotify/authorize", headers=NAVIGATION)

    assert response.status_code == 302
    assert response.headers["Location"].startswith(f"{sandbox.accounts_url}/authorize?")


# --- callbacks with a code ---------------------------------------------------------------------


@BOTH_DATABASES
def test_new_spotify_account_is_connected_to_the_signed_in_user(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    user = register(client)
    before = datetime.now(UTC)

    spotify = connect(client, sandbox)

    assert spotify["status"] == "connected"
    assert spotify["spotify_id"] == "mira_t_42"
    assert spotify["display_name"] == "Mira T."
    assert "streaming" in spotify["scopes"]
    assert spotify["last_refreshed_at"] is None
    authorized = datetime.fromisoformat(spotify["authorized_at"])
    assert before.replace(microsecond=0) <= authorized <= datetime.now(UTC)
    months = (datetime.fromisoformat(spotify["reauthorize_by"]) - authorized).days
    assert 181 <= months <= 184
    assert client.get("/api/spotify").json == spotify
    assert client.get("/api/session").json["spotify"] == spotify
    [row] = rows(app)
    assert (row["user_id"], row["spotify_id"]) == (user["id"], "mira_t_42")
    assert row["account_id"] == spotify["account_id"]


def test_visitor_without_an_account_can_connect(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)

    session = client.get("/api/session").json
    assert session["authenticated"] is False
    assert session["spotify"]["status"] == "connected"
    assert rows(app)[0]["user_id"] is None


def test_registering_keeps_the_visitors_connection(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)

    user = register(client)

    assert client.get("/api/session").json["spotify"]["spotify_id"] == "mira_t_42"
    assert rows(app)[0]["user_id"] == user["id"]


def test_registering_does_not_take_over_an_owned_connection(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    owner, visitor = new_client(), new_client()
    owner_id = register(owner)["id"]
    connect(owner, sandbox)
    connect(visitor, sandbox)  # the same person, elsewhere and not signed in

    register(visitor)

    assert visitor.get("/api/spotify").json == {"status": "not_connected"}
    assert [row["user_id"] for row in rows(app)] == [owner_id]


def test_connecting_does_not_sign_in(new_client: Callable[[], FlaskClient], sandbox: SandboxClient) -> None:
    owner, visitor = new_client(), new_client()
    register(owner)
    connect(owner, sandbox)

    connect(visitor, sandbox)

    assert visitor.get("/api/session").json["authenticated"] is False
    assert visitor.get("/api/user").status_code == 401


@BOTH_DATABASES
def test_user_who_connects_an_unowned_account_becomes_its_owner(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    connect(new_client(), sandbox)
    client = new_client()
    user = register(client)

    connect(client, sandbox)

    assert [row["user_id"] for row in rows(app)] == [user["id"]]


@pytest.mark.requirement("D9")
@BOTH_DATABASES
def test_second_authorization_stores_the_new_grant(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    one, two = start_authorization(client), start_authorization(client)
    send_callback(client, sandbox.consent(one))
    [before] = rows(app)

    response = send_callback(client, sandbox.consent(two))

    assert response.json["status"] == "connected"
    [after] = rows(app)
    assert after["id"] == before["id"]
    assert after["grant_id"] != before["grant_id"]
    assert after["access_token"] != before["access_token"]


def test_reauthorizing_keeps_the_old_grant_until_the_new_consent(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    [before] = rows(app)

    again = client.get("/api/spotify/authorize?reauthorize=true").json
    assert again["status"] == "authorization_required"
    assert "show_dialog=true" in again["authorize_url"]  # otherwise, Spotify skips the consent page
    denied = send_callback(client, sandbox.consent(again["authorize_url"], decision="cancel"))
    assert (denied.status_code, rows(app)) == (401, [before])
    again = client.get("/api/spotify/authorize?reauthorize=true").json
    assert send_callback(client, sandbox.consent(again["authorize_url"])).json["status"] == "connected"

    [after] = rows(app)
    assert after["grant_id"] != before["grant_id"]
    assert client.get("/api/spotify/authorize").json["status"] == "connected"


@pytest.mark.requirement("D9")
def test_different_account_is_rejected_until_the_old_one_is_disconnected(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    one, two = start_authorization(client), start_authorization(client)
    send_callback(client, sandbox.consent(one, person="mira_t_42"))
    before = rows(app)

    response = send_callback(client, sandbox.consent(two, person="aiko-87"))

    assert response.status_code == 409
    assert slug(response) == "spotify-account-mismatch"
    assert rows(app) == before
    assert client.delete("/api/spotify").status_code == 204
    assert connect(client, sandbox, person="aiko-87")["spotify_id"] == "aiko-87"


@pytest.mark.requirement("D6")
@BOTH_DATABASES
def test_account_id_identifies_an_account_whose_id_changes(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    one, two = start_authorization(client), start_authorization(client)
    send_callback(client, sandbox.consent(one))
    sandbox.rename("mira_t_42", "mira_new")

    send_callback(client, sandbox.consent(two, person="mira_new"))

    [row] = rows(app)
    assert row["spotify_id"] == "mira_new"


@pytest.mark.requirement("D6")
def test_reused_spotify_id_does_not_give_access_to_its_previous_account(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    mira, aiko = new_client(), new_client()
    mira_id, aiko_id = register(mira)["id"], register(aiko)["id"]
    connect(mira, sandbox, person="mira_t_42")
    sandbox.rename("mira_t_42", "mira_new")
    sandbox.rename("aiko-87", "mira_t_42")

    connect(aiko, sandbox, person="mira_t_42")

    assert {row["user_id"]: row["spotify_id"] for row in rows(app)}[aiko_id] == "mira_t_42"
    assert mira.get("/api/spotify").json["status"] == "connected"
    assert len({row["account_id"] for row in rows(app)}) == 2
    assert mira_id in {row["user_id"] for row in rows(app)}


@pytest.mark.requirement("D6")
@BOTH_DATABASES
def test_reused_spotify_id_does_not_match_a_row_without_account_id(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    """A row from before Spotify sent account ids has the id that Mira has now."""
    sandbox.settings(account_id=False)
    connect(new_client(), sandbox, person="aiko-87")
    sandbox.settings(account_id=True)
    connect(mira := new_client(), sandbox, person="mira_t_42")
    sandbox.rename("aiko-87", "aiko_new")
    sandbox.rename("mira_t_42", "aiko-87")

    connect(again := new_client(), sandbox, person="aiko-87")

    assert len(rows(app)) == 2
    assert again.get("/api/spotify").json["spotify_id"] == "aiko-87"
    assert mira.get("/api/spotify").json == {"status": "not_connected"}  # a new consent ends the old one


def test_spotify_id_identifies_accounts_without_account_id(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    sandbox.settings(account_id=False)
    register(client)
    one, two = start_authorization(client), start_authorization(client)
    assert send_callback(client, sandbox.consent(one)).json["spotify"]["account_id"] is None
    sandbox.settings(account_id=True)

    spotify = send_callback(client, sandbox.consent(two)).json["spotify"]

    assert spotify["account_id"]
    assert len(rows(app)) == 1


@pytest.mark.parametrize(
    ("person", "mode"), [("jonas.k", "dev2026"), ("aiko-87", "transition"), ("31xk4zq7w5m2", "legacy")]
)
def test_every_kind_of_account_can_connect(
    client: FlaskClient, sandbox: SandboxClient, person: str, mode: str
) -> None:
    sandbox.settings(mode=mode)

    assert connect(client, sandbox, person=person)["spotify_id"] == person


@pytest.mark.requirement("D12")
def test_response_without_scope_grants_the_requested_scopes(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    """RFC 6749 section 5.1."""
    sandbox.settings(granted_scopes=[])
    requested = parse_qs(urlsplit(start_authorization(client)).query)["scope"][0]

    assert sorted(connect(client, sandbox)["scopes"]) == sorted(requested.split())


# --- callbacks with an error -------------------------------------------------------------------


@pytest.mark.requirement("D10")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("error=server_error&state={state}", "error-spotify-unavailable"),
        ("error=<script>alert(1)</script>&state={state}", "error-spotify-unavailable"),
        ("error=access_denied&code=abc&state={state}", "denied"),
        ("error=access_denied&state=wrong", "error-spotify-state-mismatch"),
        ("error=access_denied", "error-spotify-state-mismatch"),
        ("code=a&code=b&state={state}", "error-validation-error"),
        ("code=" + "x" * 3000 + "&state=" + "y" * 60_000, "error-spotify-state-mismatch"),
    ],
)
def test_browser_is_redirected_with_one_of_a_fixed_set_of_results(
    client: FlaskClient, query: str, expected: str
) -> None:
    state = callback_query(start_authorization(client))["state"]

    response = client.get(f"/api/spotify/authorize?{query.format(state=state)}", headers=NAVIGATION)

    assert response.status_code == 303
    assert response.headers["Location"] == f"http://127.0.0.1:5000/api/docs?spotify={expected}"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.requirement("D4")
@pytest.mark.settings(FRONTEND_URL="https://app.example.com/welcome?from=api")
def test_browser_is_redirected_to_the_frontend_url(client: FlaskClient, sandbox: SandboxClient) -> None:
    callback = sandbox.consent(client.get("/api/spotify/authorize", headers=NAVIGATION).headers["Location"])

    response = client.get(callback.removeprefix("http://127.0.0.1:5000"), headers=NAVIGATION)
    again = client.get("/api/spotify/authorize", headers=NAVIGATION)

    expected = "https://app.example.com/welcome?from=api&spotify=connected"
    assert (response.status_code, response.headers["Location"]) == (303, expected)
    assert (again.status_code, again.headers["Location"]) == (303, expected)


# --- state ---------------------------------------------------------------------------------------


def assert_rejected_without_a_call(response: Any, sandbox: SandboxClient) -> None:
    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert token_calls(sandbox) == 0


@pytest.mark.requirement("D8")
def test_state_is_invalid_after_a_change_of_user(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    client.post("/api/logout")
    register(client, "bob")

    assert_rejected_without_a_call(send_callback(client, callback), sandbox)
    assert client.get("/api/spotify").json == {"status": "not_connected"}


@pytest.mark.requirement("D1")
def test_state_is_bound_to_the_user_and_to_the_session(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """Even if a session changed its user and kept its id, which no route does."""
    other = register(app.test_client(), "bob")
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    store = app.extensions["backline"].redis
    with app.app_context(), reading() as db:
        epoch = db.get_one(User, other["id"]).session_epoch
    for key in store.keys("session:*"):
        stored_sessions.change(app, key, user_id=other["id"], epoch=epoch)
    assert client.get("/api/user").json["username"] == "bob"

    assert_rejected_without_a_call(send_callback(client, callback), sandbox)


@pytest.mark.requirement("D3")
def test_replayed_callback_is_rejected_after_a_disconnect(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    callback = sandbox.consent(start_authorization(client))
    send_callback(client, callback)
    client.delete("/api/spotify")

    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert token_calls(sandbox) == 1


@pytest.mark.requirement("D2")
def test_redis_holds_the_state_only_encrypted_and_hashed(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    url = start_authorization(client)
    state = callback_query(url)["state"]
    store = app.extensions["backline"].redis
    [key] = store.keys("authorization:*")

    assert state.encode() not in key
    assert state.encode() not in store.get(key)
    send_callback(client, sandbox.consent(url))
    assert store.keys("author*") == [key]
    assert store.ttl(key) <= 60
    assert state.encode() not in store.get(key)


# --- existing connections ---------------------------------------------------------------------------


def test_existing_connection_is_returned_without_a_call(client: FlaskClient, sandbox: SandboxClient) -> None:
    spotify = connect(client, sandbox)
    sandbox.clear_calls()

    response = client.get("/api/spotify/authorize")

    assert response.json == {"status": "connected", "spotify": spotify}
    assert sandbox.calls() == []


def test_existing_connection_is_read_once(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    """The token service also reads the row of the token."""
    connect(client, sandbox)
    statements: list[str] = []

    def record(*arguments: Any) -> None:
        statements.append(arguments[2])

    with app.app_context():
        engine = database.db.engine
    sa.event.listen(engine, "before_cursor_execute", record)
    try:
        assert client.get("/api/spotify/authorize").json["status"] == "connected"
    finally:
        sa.event.remove(engine, "before_cursor_execute", record)

    assert len([statement for statement in statements if "FROM spotify_users" in statement]) == 1


def test_expired_token_of_a_connection_is_refreshed(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    change_token(app, expires_at=datetime.now(UTC) - timedelta(minutes=1))

    spotify = client.get("/api/spotify/authorize").json["spotify"]

    assert datetime.fromisoformat(spotify["access_token_expires_at"]) > datetime.now(UTC)
    assert spotify["last_refreshed_at"] is not None
    assert refresh_count(sandbox) == 1


def test_new_session_of_a_user_has_their_connection(
    new_client: Callable[[], FlaskClient], sandbox: SandboxClient
) -> None:
    register(first := new_client(), "ada")
    connect(first, sandbox)
    second = new_client()
    second.post("/api/login", json={"login": "ada", "password": "a long sentence is best"})

    assert second.get("/api/spotify/authorize").json["status"] == "connected"
    assert second.get("/api/session").json["spotify"]["spotify_id"] == "mira_t_42"


def test_connection_whose_grant_has_ended_requires_a_new_consent(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    person = requests.Session()
    connect(client, sandbox, browser=person)
    sandbox.revoke("mira_t_42")
    change_token(app, expires_at=datetime.now(UTC) - timedelta(minutes=1))

    visit = client.get("/api/spotify/authorize").json

    assert visit["status"] == "authorization_required"
    assert visit["reason"] == "reauthorization_required"
    response = send_callback(client, sandbox.consent(visit["authorize_url"]))
    assert response.json["status"] == "connected"
    assert len(rows(app)) == 1
    person.close()


def test_connection_that_is_deleted_meanwhile_requires_authorization(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client)
    connect(client, sandbox)
    change_token(app, expires_at=datetime.now(UTC) - timedelta(minutes=1))
    sandbox.fault(on="refresh", kind="park", times=1)
    tab = another_tab(client)
    with ThreadPoolExecutor(1) as pool:
        visit = pool.submit(tab.get, "/api/spotify/authorize")
        sandbox.wait_for_held(1)
        client.delete("/api/spotify")
        sandbox.release()

    assert visit.result().json["status"] == "authorization_required"
    assert "reason" not in visit.result().json


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_browser_is_redirected_to_the_frontend_without_redis(client: FlaskClient) -> None:
    for cookie in ("", "A" * 43):
        client.set_cookie("backline_session", cookie)
        response = client.get("/api/spotify/authorize?code=a&state=b", headers=NAVIGATION)

        assert response.status_code == 303
        assert response.headers["Location"].endswith("?spotify=error-service-unavailable")
        assert client.get("/api/spotify/authorize?code=a&state=b").status_code == 503


# --- failures of Spotify -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "problem"),
    [
        ({"on": "code", "kind": "google_502"}, 503, "spotify-unavailable"),
        ({"on": "code", "kind": "envoy_503"}, 503, "spotify-unavailable"),
        ({"on": "code", "kind": "truncated_json"}, 503, "spotify-unavailable"),
        ({"on": "code", "kind": "no_access_token"}, 503, "spotify-unavailable"),
        ({"on": "code", "kind": "invalid_client"}, 503, "spotify-misconfigured"),
        ({"on": "code", "kind": "false_invalid_grant"}, 401, "spotify-access-denied"),
        ({"on": "code", "kind": "rate_limited", "retry_after": 7}, 429, "spotify-rate-limited"),
        ({"on": "me", "kind": "google_502"}, 503, "spotify-unavailable"),
        ({"on": "me", "kind": "rate_limited", "retry_after": 1}, 429, "spotify-rate-limited"),
    ],
)
def test_failure_of_spotify_is_reported_and_stores_nothing(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, fault: dict[str, Any], status: int, problem: str
) -> None:
    callback = sandbox.consent(start_authorization(client))
    sandbox.fault(**fault, times=None)

    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (status, problem)
    if status in (429, 503):
        assert int(response.headers["Retry-After"]) > 0
    assert rows(app) == []
    # Another consent succeeds after the wait that Spotify asked for.
    sandbox.clear_faults()
    callback = sandbox.consent(start_authorization(client))
    assert eventually(lambda: send_callback(client, callback).json["status"] == "connected")


@BOTH_DATABASES
def test_account_and_tokens_are_stored_in_one_transaction(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    """If the tokens cannot be stored, no account is stored without tokens."""
    register(client)
    callback, of_browser = (sandbox.consent(start_authorization(client)) for _ in range(2))
    actions = {
        "sqlite": "BEGIN SELECT RAISE(ABORT, 'rejected'); END",
        "mysql": "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'rejected'",
    }
    with app.app_context(), writing() as db:
        kind = db.get_bind().dialect.name
        db.execute(sa.text(f"CREATE TRIGGER reject BEFORE INSERT ON access_tokens {actions[kind]}"))
    try:
        response = send_callback(client, callback)
        page = client.get(
            "/api/spotify/authorize", query_string=callback_query(of_browser), headers=NAVIGATION
        )
    finally:
        with app.app_context(), writing() as db:
            db.execute(sa.text("DROP TRIGGER reject"))

    problem = "internal-error" if kind == "sqlite" else "service-unavailable"
    assert (slug(response), page.status_code) == (problem, 303)
    assert page.headers["Location"].endswith(f"?spotify=error-{problem}")
    failures = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert failures == ["request_failed" if kind == "sqlite" else "dependency_unavailable"] * 2
    with app.app_context(), reading() as db:
        assert db.execute(sa.text("SELECT count(*) FROM spotify_users")).scalar() == 0
    assert connect(client, sandbox)["status"] == "connected"


@pytest.mark.settings(SPOTIFY_REDIRECT_URI="http://127.0.0.1:5173/callback")
def test_redirect_uri_can_be_a_page_of_the_spa(client: FlaskClient, sandbox: SandboxClient) -> None:

    callback = sandbox.consent(start_authorization(client))

    assert callback.startswith("http://127.0.0.1:5173/callback?")
    assert send_callback(client, callback).json["status"] == "connected"
