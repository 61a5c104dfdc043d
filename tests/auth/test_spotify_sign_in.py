"""Signing in with Spotify: accounts without a password, ways in, races, and takeovers that do not work."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.auth import email_tokens
from app.auth.spotify_sign_in import suggest_username
from app.infra.database import reading, writing
from app.infra.row_versions import announce
from app.models import AccessToken, GrantState, Purpose, SpotifyUser, User
from app.spotify.oauth.state import AuthorizationStore
from tests.conftest import MakeApp
from tests.helpers.flows import (
    PASSWORD,
    another_tab,
    connect,
    login,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import Server, eventually
from tests.helpers.upstream import Reply, Upstream

pytestmark = [pytest.mark.sqlite_only, pytest.mark.settings(SPOTIFY_SIGN_IN="true")]
BOTH_DATABASES = pytest.mark.parametrize("database_url", ["sqlite", "mariadb"], indirect=True)

NewClient = Callable[[], FlaskClient]
AUTHORIZE = "/api/spotify/authorize"
NEW_PASSWORD = "another long sentence, please"


def start(client: FlaskClient) -> str:
    response = client.get(AUTHORIZE, query_string={"intent": "sign_in"})
    assert response.json["status"] == "authorization_required", response.text
    return str(response.json["authorize_url"])


def try_to_sign_in(client: FlaskClient, sandbox: SandboxClient, person: str = "mira_t_42") -> TestResponse:
    return send_callback(client, sandbox.consent(start(client), person=person))


def sign_in(client: FlaskClient, sandbox: SandboxClient, person: str = "mira_t_42") -> dict[str, Any]:
    """Sign in with Spotify. Returns the user."""
    response = try_to_sign_in(client, sandbox, person)
    assert response.status_code == 200, response.text
    user: dict[str, Any] = client.get("/api/user").json
    return user


def is_signed_in(client: FlaskClient) -> bool:
    return bool(client.get("/api/session").json["authenticated"])


def count(app: Flask, model: type) -> int:
    with app.app_context(), reading() as db:
        return db.execute(sa.select(sa.func.count()).select_from(model)).scalar_one()


def age_sign_in(client: FlaskClient) -> None:
    """Let 16 minutes pass since the sign-in."""
    with client.session_transaction("/api/session") as session:
        session["signed_in_at"] -= 16 * 60


def verify_email(app: Flask, user_id: int) -> None:
    with app.app_context(), writing() as db:
        announce(db, users=[user_id])
        db.execute(sa.update(User).where(User.id == user_id).values(email_verified_at=sa.func.now()))


# --- accounts -------------------------------------------------------------------------------------


@pytest.mark.settings(SPOTIFY_SIGN_IN="")
def test_sign_in_is_off_by_default(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    response = client.get(AUTHORIZE, query_string={"intent": "sign_in"})

    assert (response.status_code, response.json["errors"].keys()) == (422, {"intent"})
    assert client.get("/api/session").json == {"authenticated": False, "user": None, "spotify": None}
    register(client)
    assert "signs_in" not in connect(client, sandbox)
    assert count(app, User) == 1


def test_other_intents_are_rejected(client: FlaskClient) -> None:
    for intent in ("sign-in", "SIGN_IN", "register", "sign_in "):
        response = client.get(AUTHORIZE, query_string={"intent": intent})
        assert (response.status_code, response.json["errors"].keys()) == (422, {"intent"})
    assert client.get("/api/session").json["spotify_sign_in"] is True


@BOTH_DATABASES
@pytest.mark.parametrize("mode", ["dev2026", "legacy"])
def test_unknown_spotify_account_gets_an_account(
    new_client: NewClient, app: Flask, sandbox: SandboxClient, mode: str
) -> None:
    """Also in development mode, in which Spotify sends no email address."""
    sandbox.settings(mode=mode)
    client = new_client()

    user = sign_in(client, sandbox)

    assert (user["username"], user["email"], user["email_verified"]) == ("mira-t", None, False)
    assert user["has_password"] is False
    session = client.get("/api/session").json
    assert (session["authenticated"], session["spotify"]["signs_in"]) == (True, True)
    assert client.get("/api/user/export").json["user"]["email"] is None
    assert len(client.get("/api/user/sessions").json["items"]) == 1
    # Again, in this browser and in another one, although Spotify has ended the grant.
    client.post("/api/logout")
    with app.app_context(), writing() as db:
        announce(db, users=[user["id"]], connections=db.scalars(sa.select(SpotifyUser.id)))
        db.execute(sa.update(AccessToken).values(state=GrantState.REAUTHORIZATION_REQUIRED))
    assert not is_signed_in(client)
    elsewhere = new_client()
    assert [sign_in(browser, sandbox)["id"] for browser in (client, elsewhere)] == [user["id"]] * 2
    assert (count(app, User), count(app, SpotifyUser)) == (1, 1)
    # No password fits.
    for password in ("", "password", PASSWORD):
        assert login(new_client(), "mira-t").status_code == 401, password


def test_username_can_be_changed_at_any_time(client: FlaskClient, sandbox: SandboxClient) -> None:
    sign_in(client, sandbox)
    age_sign_in(client)

    assert client.patch("/api/user", json={"username": "mira"}).json["username"] == "mira"


def test_taken_username_gets_a_number(new_client: NewClient, sandbox: SandboxClient) -> None:
    register(new_client(), "mira-t")

    name = sign_in(new_client(), sandbox)["username"]

    assert name.startswith("mira-t-")
    assert name.removeprefix("mira-t-").isdecimal()


@pytest.mark.parametrize(
    ("display_name", "username"),
    [
        ("Mira T.", "mira-t"),
        ("Ødegård & Söhne 🎻", "ødegård-söhne"),
        ("田中さん", "田中さん"),
        (None, "listener"),
        ("", "listener"),
        ("🎻", "listener"),
        ("x", "listener"),
        ("\u202eevil\u2066", "evil"),
        ("ada@example.com", "ada-example.com"),
        ("none:1", "none-1"),
        ("a" * 255, "a" * 32),
        ("..--Ada--..", "ada"),
    ],
)
def test_username_is_like_the_display_name(display_name: str | None, username: str) -> None:
    assert suggest_username(display_name) == username


def test_plain_connecting_signs_no_one_in(new_client: NewClient, sandbox: SandboxClient) -> None:
    owner, visitor = new_client(), new_client()
    sign_in(owner, sandbox)

    connect(visitor, sandbox)

    assert not is_signed_in(visitor)
    assert visitor.get("/api/user").status_code == 401


def test_signed_in_person_connects_as_before(
    new_client: NewClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada, bob = new_client(), new_client()
    user = register(ada)

    assert try_to_sign_in(ada, sandbox).json["spotify"]["signs_in"] is True

    assert ada.get("/api/user").json["id"] == user["id"]
    register(bob)
    assert slug(try_to_sign_in(bob, sandbox)) == "spotify-account-in-use"
    assert slug(try_to_sign_in(ada, sandbox, "jonas.k")) == "spotify-account-mismatch"
    assert count(app, User) == 2


def test_any_order_of_linking_and_unlinking(
    new_client: NewClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada = new_client()
    user = register(ada)
    connect(ada, sandbox)
    browser = new_client()
    assert sign_in(browser, sandbox)["id"] == user["id"]  # password, then Spotify
    assert login(new_client(), user["username"]).status_code == 200
    assert browser.delete("/api/spotify").status_code == 204
    stranger = new_client()
    other = sign_in(stranger, sandbox)  # no longer Ada's
    assert other["id"] != user["id"]
    assert slug(send_callback(ada, sandbox.consent(start_authorization(ada)))) == "spotify-account-in-use"

    # Spotify, then a password, then another Spotify account.
    assert stranger.put("/api/user/password", json={"new_password": NEW_PASSWORD}).status_code == 204
    assert stranger.get("/api/user").json["has_password"] is True
    assert stranger.delete("/api/spotify").status_code == 204
    assert connect(stranger, sandbox, "jonas.k")["signs_in"] is True
    assert sign_in(new_client(), sandbox, "jonas.k")["id"] == other["id"]
    credentials = {"login": other["username"], "password": NEW_PASSWORD}
    assert new_client().post("/api/login", json=credentials).status_code == 200
    assert connect(ada, sandbox)["signs_in"] is True
    assert sign_in(new_client(), sandbox)["id"] == user["id"]
    assert count(app, User) == 2


# --- ways in -----------------------------------------------------------------------------------------


@BOTH_DATABASES
def test_last_way_in_cannot_be_removed(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    user = sign_in(client, sandbox)

    rejected = client.delete("/api/spotify")

    assert (rejected.status_code, slug(rejected)) == (409, "last-way-in")
    assert client.get("/api/spotify").json["status"] == "connected"
    email = {"email": "mira@example.com"}
    assert client.patch("/api/user", json=email).json["email_verified"] is False
    assert slug(client.delete("/api/spotify")) == "last-way-in"  # it may be a typing error
    assert client.patch("/api/user", json={"email": None}).status_code == 422
    verify_email(app, user["id"])
    assert client.delete("/api/spotify").status_code == 204


def test_password_is_a_way_in(client: FlaskClient, sandbox: SandboxClient) -> None:
    sign_in(client, sandbox)
    client.put("/api/user/password", json={"new_password": NEW_PASSWORD})

    assert client.delete("/api/spotify").status_code == 204


@BOTH_DATABASES
def test_account_without_a_password_needs_a_fresh_sign_in(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    sign_in(client, sandbox)
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("PATCH", "/api/user", {"email": "mira@example.com"}),
        ("POST", "/api/user/tokens", {"name": "script", "rights": ["account:read"]}),
        ("DELETE", "/api/user/sessions", {}),
        ("PUT", "/api/user/password", {"new_password": NEW_PASSWORD}),
        ("DELETE", "/api/user", {}),
    ]
    age_sign_in(client)
    for method, path, body in changes:
        response = client.open(path, method=method, json=body)
        assert (response.status_code, slug(response)) == (403, "fresh-sign-in-required"), path
        name = "password" if path == "/api/user" and method == "DELETE" else "current_password"
        wrong = {**body, name: "x"}
        assert slug(client.open(path, method=method, json=wrong)) == "invalid-credentials", path

    client.post("/api/logout")
    for method, path, body in changes:
        sign_in(client, sandbox)  # a new password ends the fresh sign-in of an account without one
        confirmed = body
        if client.get("/api/user").json["has_password"]:
            confirmed = {**body, "password": NEW_PASSWORD}
        assert client.open(path, method=method, json=confirmed).status_code in (200, 201, 204), path
    assert count(app, User) == 0


def test_account_with_a_password_still_needs_it(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client)
    connect(client, sandbox)
    sign_in(another := client.application.test_client(), sandbox)  # fresh, without the password

    for method, path, body in (
        ("PATCH", "/api/user", {"email": "new@example.com"}),
        ("PUT", "/api/user/password", {"new_password": NEW_PASSWORD}),
        ("DELETE", "/api/user", {}),
    ):
        assert another.open(path, method=method, json=body).status_code == 422, path


def test_connection_of_an_old_sign_in_signs_no_one_in(new_client: NewClient, sandbox: SandboxClient) -> None:
    """A session that was stolen must not be enough for a way in that outlives it."""
    client = new_client()
    user = register(client)
    age_sign_in(client)

    assert "signs_in" not in connect(client, sandbox)
    rejected = try_to_sign_in(new_client(), sandbox)

    assert (rejected.status_code, slug(rejected)) == (409, "spotify-account-in-use")
    login(client, user["username"])
    assert try_to_sign_in(client, sandbox).json["spotify"]["signs_in"] is True
    assert sign_in(new_client(), sandbox)["id"] == user["id"]


def test_disabled_account_cannot_be_signed_in_to(
    new_client: NewClient, app: Flask, sandbox: SandboxClient
) -> None:
    user = sign_in(new_client(), sandbox)
    with app.app_context(), writing() as db:
        announce(db, users=[user["id"]])
        db.execute(sa.update(User).values(disabled_at=sa.func.now()))
    browser = new_client()

    response = try_to_sign_in(browser, sandbox)

    assert (response.status_code, slug(response)) == (401, "invalid-credentials")
    assert response.json["detail"] == "The account that it signs in to is disabled."
    assert not is_signed_in(browser)


# --- sessions and state -----------------------------------------------------------------------------


@pytest.mark.requirement("D1")
def test_sign_in_changes_the_session_id(client: FlaskClient, sandbox: SandboxClient) -> None:
    callback = sandbox.consent(start(client))
    planted = another_tab(client)

    assert send_callback(client, callback).status_code == 200

    assert is_signed_in(client)
    assert not is_signed_in(planted)


def shut_out(app: Flask, _new_client: NewClient, _sandbox: SandboxClient) -> None:
    with app.app_context(), writing() as db:
        announce(db, connections=db.scalars(sa.select(SpotifyUser.id)))
        db.execute(sa.update(SpotifyUser).values(sign_in_since=None))


def sign_in_elsewhere(_app: Flask, new_client: NewClient, sandbox: SandboxClient) -> None:
    sign_in(new_client(), sandbox)


@pytest.mark.requirement("D3")
@pytest.mark.parametrize("meanwhile", [None, shut_out, sign_in_elsewhere])
def test_late_duplicate_does_not_sign_in(
    client: FlaskClient,
    new_client: NewClient,
    app: Flask,
    sandbox: SandboxClient,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Flask, NewClient, SandboxClient], None] | None,
) -> None:
    """It has another code, or the account or the grant has changed since the first callback.

    Someone who planted the cookie, and started the sign-in with it, knows its state, but not the code.
    """
    callback, tab = sandbox.consent(start(client)), another_tab(client)
    find = AuthorizationStore.find

    def find_late(*arguments: Any) -> Any:
        """Complete the first callback after the duplicate has read its session."""
        monkeypatch.setattr(AuthorizationStore, "find", find)
        with ThreadPoolExecutor(1) as pool:  # outside of this request's context
            assert pool.submit(send_callback, client, callback).result().status_code == 200
            if meanwhile is not None:
                pool.submit(meanwhile, app, new_client, sandbox).result()
        return find(*arguments)

    monkeypatch.setattr(AuthorizationStore, "find", find_late)
    query = callback_query(callback)
    response = tab.get(AUTHORIZE, query_string=query if meanwhile else {**query, "code": "guessed"})

    assert slug(response) == "spotify-state-mismatch"
    assert [is_signed_in(browser) for browser in (client, tab)] == [True, False]


@pytest.mark.requirement("D7")
def test_callback_of_an_attacker_signs_no_one_in(
    new_client: NewClient, app: Flask, sandbox: SandboxClient
) -> None:
    """Login CSRF: the victim would use, and fill, the attacker's account."""
    attacker, victim, user = new_client(), new_client(), new_client()
    callback = sandbox.consent(start(attacker))
    register(user)
    start(victim)

    for browser in (victim, user, new_client()):
        before = browser.get("/api/session").json
        assert slug(send_callback(browser, callback)) == "spotify-state-mismatch"
        assert browser.get("/api/session").json == before
    assert sandbox.calls(path="/api/token") == []
    assert send_callback(attacker, callback).status_code == 200


@pytest.mark.requirement("D8")
def test_state_is_invalid_after_a_change_of_user(client: FlaskClient, sandbox: SandboxClient) -> None:
    visitors = sandbox.consent(start(client))
    register(client)
    users = sandbox.consent(start(client))

    assert slug(send_callback(client, visitors)) == "spotify-state-mismatch"
    client.post("/api/logout")
    assert slug(send_callback(client, users)) == "spotify-state-mismatch"
    assert not is_signed_in(client)
    assert sandbox.calls(path="/api/token") == []


@pytest.mark.requirement("D7")
def test_plain_authorization_does_not_become_a_sign_in(client: FlaskClient, sandbox: SandboxClient) -> None:
    plain = callback_query(sandbox.consent(start_authorization(client)))

    assert client.get(AUTHORIZE, query_string={**plain, "intent": "sign_in"}).status_code == 200
    assert not is_signed_in(client)


@pytest.mark.requirement("D3")
def test_duplicate_callback_signs_in_once(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    callback = sandbox.consent(start(client))
    tabs = [another_tab(client) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(send_callback, tabs, [callback] * 4))

    assert [response.status_code for response in responses] == [200] * 4
    assert {tab.get("/api/user").json["username"] for tab in tabs} == {"mira-t"}
    assert (count(app, User), len(sandbox.calls(path="/api/token"))) == (1, 1)


def test_declined_consent_creates_nothing(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    response = send_callback(client, sandbox.consent(start(client), decision="cancel"))

    assert slug(response) == "spotify-access-denied"
    assert (count(app, User), is_signed_in(client)) == (0, False)


def test_session_that_ends_during_the_callback_is_not_signed_in(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    callback = sandbox.consent(start(client))
    sandbox.fault(on="me", kind="park")
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(send_callback, another_tab(client), callback)
        sandbox.wait_for_held(1)
        client.post("/api/logout")
        sandbox.release()

    assert slug(response.result()) == "spotify-state-mismatch"
    assert (count(app, User), count(app, SpotifyUser)) == (0, 0)


# --- takeovers -----------------------------------------------------------------------------------------


@pytest.mark.requirement("D6")
def test_changed_id_takes_over_no_account(new_client: NewClient, sandbox: SandboxClient) -> None:
    mira = sign_in(new_client(), sandbox)
    sandbox.rename("mira_t_42", "mira_moved")
    sandbox.rename("jonas.k", "mira_t_42")  # an id that is free again

    jonas = sign_in(new_client(), sandbox, "mira_t_42")

    assert jonas["id"] != mira["id"]
    assert sign_in(new_client(), sandbox, "mira_moved")["id"] == mira["id"]


@pytest.mark.requirement("D6")
def test_account_with_a_stable_id_is_not_entered_by_the_other_one(
    new_client: NewClient, app: Flask, sandbox: SandboxClient, upstream: Upstream
) -> None:
    """Spotify may leave out `account_id`, and `id` may have passed to someone else."""
    first = b'{"id": "mira", "account_id": "stable-1", "display_name": "Mira"}'
    upstream.replies(Reply(200, first))
    mira = sign_in(new_client(), sandbox)
    upstream.replies(Reply(200, b'{"id": "mira", "display_name": "Mallory"}'))
    browser = new_client()

    response = try_to_sign_in(browser, sandbox)

    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
    assert not is_signed_in(browser)
    # Accounts without one are known by their id.
    upstream.replies(Reply(200, b'{"id": "old"}'), Reply(200, b'{"id": "old"}'), Reply(200, first))
    assert sign_in(new_client(), sandbox)["id"] == sign_in(new_client(), sandbox)["id"]
    assert sign_in(new_client(), sandbox)["id"] == mira["id"]
    assert count(app, User) == 2


@pytest.mark.requirement("D6")
def test_email_takes_over_no_account(new_client: NewClient, app: Flask, sandbox: SandboxClient) -> None:
    """Spotify sends the address of another person's account here, in development mode or not."""
    sandbox.settings(mode="legacy")
    victim = new_client()
    body = {"username": "victim", "email": "mira@example.com", "password": PASSWORD}
    user = victim.post("/api/register", json=body).json
    verify_email(app, user["id"])

    attacker = sign_in(new_client(), sandbox)

    assert (attacker["id"] != user["id"], attacker["email"]) == (True, None)


@BOTH_DATABASES
@pytest.mark.requirement("D6")
def test_earlier_connection_of_a_visitor_takes_over_no_account(
    new_client: NewClient, sandbox: SandboxClient
) -> None:
    """The attacker connects in a browser in which the victim then registers, so the connection moves."""
    shared, attacker = new_client(), new_client()
    connect(shared, sandbox)
    victim = register(shared)
    assert shared.get("/api/spotify").json["status"] == "connected"

    assert slug(try_to_sign_in(attacker, sandbox)) == "spotify-account-in-use"
    connect(attacker, sandbox)  # a new grant, as a visitor
    assert slug(try_to_sign_in(attacker, sandbox)) == "spotify-account-in-use"
    assert not is_signed_in(attacker)

    # Once the victim, signed in, has connected it, it is theirs.
    connect_again = shared.get(AUTHORIZE, query_string={"reauthorize": "true"}).json["authorize_url"]
    assert send_callback(shared, sandbox.consent(connect_again)).json["spotify"]["signs_in"] is True
    assert sign_in(new_client(), sandbox)["id"] == victim["id"]


@BOTH_DATABASES
@pytest.mark.parametrize("way", ["reset", "undo"])
def test_owner_who_returns_by_email_shuts_out_another_spotify_account(
    new_client: NewClient, app: Flask, sandbox: SandboxClient, way: str
) -> None:
    """Someone who knew the password has added their own Spotify account as a way in."""
    intruder, owner = new_client(), new_client()
    user = register(intruder)
    verify_email(app, user["id"])
    connect(intruder, sandbox)
    sign_in(new_client(), sandbox)
    with app.app_context(), writing() as db:
        if way == "reset":
            issued = email_tokens.issue(db, user["id"], Purpose.PASSWORD_RESET)
            assert issued is not None
            token: str | None = issued.token
        else:
            email_tokens.reserve_address(db, db.get_one(User, user["id"]))
            db.flush()
            token = email_tokens.issue_undo(db, user["id"], user["email"])

    if way == "reset":
        body = {"token": token, "password": NEW_PASSWORD}
        assert owner.put("/api/password-reset", json=body).status_code == 204
    else:
        body = {"token": token, "decision": "undo"}
        assert owner.put("/api/email-change", json=body).status_code == 204

    browser = new_client()
    assert slug(try_to_sign_in(browser, sandbox)) == "spotify-account-in-use"
    assert [is_signed_in(client) for client in (intruder, browser)] == [False, False]


@pytest.mark.requirement("D6")
def test_visitor_loses_the_connection_to_the_account(new_client: NewClient, sandbox: SandboxClient) -> None:
    visitor, owner = new_client(), new_client()
    connect(visitor, sandbox)

    user = sign_in(owner, sandbox)

    assert visitor.get("/api/spotify").json == {"status": "not_connected"}
    register(visitor)
    assert visitor.get("/api/spotify").json == {"status": "not_connected"}
    assert owner.get("/api/user").json["id"] == user["id"]


@BOTH_DATABASES
@pytest.mark.requirement("D6")
def test_account_that_was_given_to_someone_else_takes_over_no_account(
    new_client: NewClient, sandbox: SandboxClient
) -> None:
    ada, bob = new_client(), new_client()
    first = register(ada)
    connect(ada, sandbox)
    pending = new_client()
    callback = sandbox.consent(start(pending))  # from before the disconnect
    ada.delete("/api/spotify")
    second = register(bob)
    connect(bob, sandbox)

    assert sign_in(new_client(), sandbox)["id"] == second["id"]
    assert send_callback(pending, callback).status_code == 200
    assert pending.get("/api/user").json["id"] == second["id"]
    assert ada.get("/api/spotify").json == {"status": "not_connected"}
    assert ada.get("/api/user").json["id"] == first["id"]


# --- races -----------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_fifty_callbacks_of_a_new_spotify_account_make_one_account(
    server: Callable[..., AbstractContextManager[Server]],
    make_app: MakeApp,
    sandbox: SandboxClient,
) -> None:
    """Two processes handle them. Each browser is signed in to the same account."""
    with server(workers=2, threads=32, SPOTIFY_SIGN_IN="true") as api, requests.Session() as person:
        person.trust_env = False
        browsers = [_Browser(api.url, sandbox) for _ in range(50)]
        callbacks = [sandbox.consent(browser.start(), browser=person) for browser in browsers]
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(_Browser.finish, browsers, callbacks))
        users = [browser.get("/api/user").json()["id"] for browser in browsers]
        for browser in browsers:
            browser.session.close()

    app = make_app()
    assert len(set(users)) == 1
    assert [count(app, model) for model in (User, SpotifyUser, AccessToken)] == [1, 1, 1]


class _Browser:
    def __init__(self, url: str, sandbox: SandboxClient) -> None:
        self.url, self.sandbox, self.session = url, sandbox, requests.Session()
        self.session.trust_env = False
        self.session.headers["X-Requested-With"] = "test"

    def get(self, path: str, **query: str) -> requests.Response:
        return self.session.get(f"{self.url}{path}", params=query, timeout=120)

    def start(self) -> str:
        return str(self.get(AUTHORIZE, intent="sign_in").json()["authorize_url"])

    def finish(self, callback: str) -> None:
        """Send the callback, and another one while the server is too busy for it."""
        callbacks = [callback]

        def is_done() -> bool:
            response = self.get(AUTHORIZE, **callback_query(callbacks.pop()))
            if response.status_code != 200:
                callbacks.append(self.sandbox.consent(self.start()))
            return response.status_code == 200

        eventually(is_done)
