"""Sessions of visitors, who connect Spotify without an account: what they can use, and what ends them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra import database
from app.infra.database import reading, writing
from app.models import SpotifyUser, User
from app.models.snapshots import ConnectionSnapshot
from app.models.user import new_session_epoch
from app.spotify import connections
from app.spotify.connections import Connections
from app.spotify.oauth.state import AuthorizationStore
from app.web.sessions import index as session_index
from tests.conftest import MakeApp
from tests.helpers import stored_sessions
from tests.helpers.flows import (
    PASSWORD,
    another_tab,
    connect,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.mail_server import Mailbox, token_in
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import LONG

NewClient = Callable[[], FlaskClient]
ONE_DATABASE = pytest.mark.sqlite_only
NOT_CONNECTED = {"status": "not_connected"}
NEW_PASSWORD = "another sentence, and longer"


def owner_and_visitor(new_client: NewClient, sandbox: SandboxClient) -> tuple[FlaskClient, FlaskClient]:
    """Return the owner of a connection, and a visitor who connected the same account later."""
    register(owner := new_client(), "ada")
    connect(owner, sandbox)
    connect(visitor := new_client(), sandbox)
    assert visitor.get("/api/spotify").json["status"] == "connected"
    return owner, visitor


def consent_again(client: FlaskClient, sandbox: SandboxClient) -> None:
    url = client.get("/api/spotify/authorize?reauthorize=true").json["authorize_url"]
    assert send_callback(client, sandbox.consent(url)).json["status"] == "connected"


def call_separately(call: Callable[..., object], *arguments: object) -> None:
    """Call a function outside of the current request's context."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call, *arguments).result()


def assert_not_connected(client: FlaskClient) -> None:
    """Assert that no route lets this session use a connection."""
    assert client.get("/api/spotify").json == NOT_CONNECTED
    assert client.get("/api/session").json == {"authenticated": False, "user": None, "spotify": None}
    for path in ("/api/spotify/token", "/api/spotify/v1/me"):
        assert slug(client.get(path)) == "spotify-not-connected", path
    assert client.get("/api/spotify/authorize").json["status"] == "authorization_required"


def sessions_of(client: FlaskClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/user/sessions").json["items"]
    return found


def connection_in_session(client: FlaskClient) -> dict[str, Any]:
    with client.session_transaction("/api/session") as session:
        return {name: session[name] for name in ("spotify_user_id", "grant_id", "owner_epoch")}


@pytest.mark.parametrize("by", ["an owner", "the owner of an owned one", "another visitor"])
@ONE_DATABASE
def test_visitor_session_ends_with_its_grant(new_client: NewClient, sandbox: SandboxClient, by: str) -> None:
    if by == "the owner of an owned one":
        other, visitor = owner_and_visitor(new_client, sandbox)
        consent_again(other, sandbox)
    else:
        connect(visitor := new_client(), sandbox)
        other = new_client()
        if by == "an owner":
            register(other, "ada")
        connect(other, sandbox)

    assert_not_connected(visitor)
    assert visitor.delete("/api/spotify").status_code == 204

    assert other.get("/api/spotify").json["status"] == "connected"
    assert other.get("/api/spotify/v1/me").status_code == 200


def test_visitor_cannot_delete_an_owned_connection(new_client: NewClient, sandbox: SandboxClient) -> None:
    owner, visitor = owner_and_visitor(new_client, sandbox)

    assert visitor.delete("/api/spotify").status_code == 204

    assert_not_connected(visitor)
    assert owner.get("/api/spotify").json["status"] == "connected"
    assert len(sessions_of(owner)) == 1


@ONE_DATABASE
def test_visitor_can_delete_a_connection_without_owner(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)

    assert client.delete("/api/spotify").status_code == 204

    with app.app_context(), reading() as db:
        assert db.scalar(sa.select(sa.func.count(SpotifyUser.id))) == 0


@ONE_DATABASE
@pytest.mark.parametrize("other", ["an owner", "another visitor"])
def test_connection_with_a_newer_grant_is_not_deleted(
    new_client: NewClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    connect(visitor := new_client(), sandbox)
    newer = new_client()
    if other == "an owner":
        register(newer, "ada")
    delete = Connections.delete

    def delete_late(
        stored: Connections, spotify_user: ConnectionSnapshot, *, user_id: int | None = None
    ) -> bool:
        call_separately(connect, newer, sandbox)
        return delete(stored, spotify_user, user_id=user_id)

    monkeypatch.setattr(Connections, "delete", delete_late)
    assert visitor.delete("/api/spotify").status_code == 204

    assert newer.get("/api/spotify").json["status"] == "connected"


@ONE_DATABASE
@pytest.mark.parametrize("path", ["/api/spotify/token", "/api/spotify/v1/me"])
def test_grant_replaced_during_a_request_gives_a_visitor_nothing_of_the_newer_one(
    new_client: NewClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    owner, visitor = owner_and_visitor(new_client, sandbox)
    own_token = visitor.get("/api/spotify/token").json["access_token"]
    visitor.get("/api/spotify/v1/me")
    own_id = sandbox.calls("/v1/me")[-1]["access_token_id"]
    touch = connections.touch

    def touch_late(spotify_user: ConnectionSnapshot) -> None:
        monkeypatch.setattr(connections, "touch", touch)
        call_separately(consent_again, owner, sandbox)
        sandbox.clear_calls()

    monkeypatch.setattr(connections, "touch", touch_late)
    response = visitor.get(path)

    assert response.json.get("access_token") in (None, own_token)
    assert {call["access_token_id"] for call in sandbox.calls("/v1/me")} <= {own_id}
    assert slug(visitor.get(path)) == "spotify-not-connected"
    assert owner.get(path).status_code == 200


@ONE_DATABASE
def test_cache_gives_a_visitor_no_response_of_a_newer_grant(
    make_app: MakeApp, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(GATEWAY_SHARE_SECONDS="60")
    owner, visitor = owner_and_visitor(app.test_client, sandbox)
    touch = connections.touch

    def touch_late(spotify_user: ConnectionSnapshot) -> None:
        monkeypatch.setattr(connections, "touch", touch)
        call_separately(consent_again, owner, sandbox)
        call_separately(owner.get, "/api/spotify/v1/me/player")

    monkeypatch.setattr(connections, "touch", touch_late)
    assert visitor.get("/api/spotify/v1/me/player").headers.get("X-Cache") != "hit"
    assert slug(visitor.get("/api/spotify/v1/me/player")) == "spotify-not-connected"
    assert owner.get("/api/spotify/v1/me/player").headers["X-Cache"] == "hit"


@ONE_DATABASE
def test_duplicate_callback_gets_only_its_own_grant(
    client: FlaskClient, new_client: NewClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner consents again after the first callback has ended, before the second finds its result."""
    register(owner := new_client(), "ada")
    callback, tab = sandbox.consent(start_authorization(client)), another_tab(client)
    wait_for_result = AuthorizationStore.wait_for_result

    def wait_longer(*arguments: Any) -> Any:
        result = wait_for_result(*arguments)
        call_separately(connect, owner, sandbox)
        return result

    monkeypatch.setattr(AuthorizationStore, "wait_for_result", wait_longer)
    opened, released = threading.Event(), threading.Event()
    find = AuthorizationStore.find

    def find_late(store: AuthorizationStore, state: str, user_id: int | None) -> Any:
        """Open the tab's session before the first callback replaces it, as a second click does."""
        found = find(store, state, user_id)
        if threading.current_thread() is not threading.main_thread() and not released.is_set():
            opened.set()
            assert released.wait(LONG)
        return found

    monkeypatch.setattr(AuthorizationStore, "find", find_late)
    responses = []
    late = threading.Thread(target=lambda: responses.append(send_callback(tab, callback)))
    late.start()
    assert opened.wait(LONG)
    assert send_callback(client, callback).json["status"] == "connected"
    released.set()
    late.join(LONG)

    assert slug(responses[0]) == "spotify-state-mismatch"
    assert tab.get("/api/spotify").json == NOT_CONNECTED
    assert owner.get("/api/spotify").json["status"] == "connected"


# --- the owner's view ------------------------------------------------------------------


@ONE_DATABASE
def test_owner_sees_the_sessions_of_visitors(new_client: NewClient, sandbox: SandboxClient) -> None:
    register(owner := new_client(), "ada")
    connect(owner, sandbox)
    (visitor := new_client()).environ_base |= {"HTTP_USER_AGENT": "Kiosk/1.0", "REMOTE_ADDR": "203.0.113.9"}
    connect(visitor, sandbox)
    connect(third_person := new_client(), sandbox, person="aiko-87")

    here, there = sorted(sessions_of(owner), key=lambda session: not session["current"])
    exported = owner.get("/api/user/export").json["sessions"]

    assert (here["current"], there["current"]) == (True, False)
    assert (there["ip"], there["user_agent"]) == ("203.0.113.9", "Kiosk/1.0")
    assert len(exported) == 2
    assert third_person.get("/api/spotify").json["status"] == "connected"


def end_other_sessions(owner: FlaskClient, _: Mailbox) -> int:
    return owner.delete("/api/user/sessions").status_code


def end_visitors_session(owner: FlaskClient, _: Mailbox) -> int:
    [there] = [session["id"] for session in sessions_of(owner) if not session["current"]]
    return owner.delete(f"/api/user/sessions/{there}").status_code


def change_password(owner: FlaskClient, _: Mailbox) -> int:
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    return owner.put("/api/user/password", json=change).status_code


def reset_password(owner: FlaskClient, mailbox: Mailbox) -> int:
    owner.post("/api/password-reset", json={"email": "ada@example.com"})
    token = token_in(mailbox.wait_for("ada@example.com", "password"))
    return owner.put("/api/password-reset", json={"token": token, "password": NEW_PASSWORD}).status_code


def delete_account(owner: FlaskClient, _: Mailbox) -> int:
    return owner.delete("/api/user", json={"password": PASSWORD}).status_code


def disconnect(owner: FlaskClient, _: Mailbox) -> int:
    return owner.delete("/api/spotify").status_code


def end_sessions_as_operator(owner: FlaskClient, _: Mailbox) -> int:
    done = owner.application.test_cli_runner().invoke(args=["users", "end-sessions", "ada"])
    return 204 if "Ended 2 sessions of user" in done.stdout else done.exit_code


def disable_user(owner: FlaskClient, _: Mailbox) -> int:
    done = owner.application.test_cli_runner().invoke(args=["users", "disable", "ada"])
    return 204 if done.exit_code == 0 else done.exit_code


def renew_epoch(owner: FlaskClient, _: Mailbox) -> int:
    """Replace the epoch, as when sessions end while Redis is unavailable."""
    with owner.application.app_context(), writing() as db:
        db.execute(sa.update(User).values(session_epoch=new_session_epoch()))
    return 204


@ONE_DATABASE
@pytest.mark.parametrize(
    "end_sessions",
    [
        end_other_sessions,
        end_visitors_session,
        change_password,
        reset_password,
        delete_account,
        disconnect,
        end_sessions_as_operator,
        disable_user,
        renew_epoch,
    ],
)
def test_ending_the_owners_sessions_ends_the_visitors_session(
    mailbox: Mailbox,
    new_client: NewClient,
    sandbox: SandboxClient,
    end_sessions: Callable[[FlaskClient, Mailbox], int],
) -> None:
    owner, visitor = owner_and_visitor(new_client, sandbox)

    assert end_sessions(owner, mailbox) == 204

    assert_not_connected(visitor)


def test_visitor_session_ends_with_the_owners_right_after_its_consent(
    mailbox: Mailbox, new_client: NewClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end after the grant is committed, before the request stores its session."""
    register(owner := new_client(), "ada")
    connect(owner, sandbox)
    callback = sandbox.consent(start_authorization(visitor := new_client()))
    run_in_transaction = database.run_in_transaction

    def commit_early(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(connections, "run_in_transaction", run_in_transaction)
        result = run_in_transaction(*arguments, **options)
        call_separately(change_password, owner, mailbox)
        return result

    monkeypatch.setattr(connections, "run_in_transaction", commit_early)
    assert send_callback(visitor, callback).json["status"] == "connected"

    assert_not_connected(visitor)
    assert owner.get("/api/spotify").json["status"] == "connected"


@ONE_DATABASE
def test_visitor_sessions_are_limited_per_grant(
    client: FlaskClient,
    new_client: NewClient,
    sandbox: SandboxClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_index, "MAX_SESSIONS", 2)
    connect(client, sandbox)
    held = connection_in_session(client)
    for other in (others := [new_client() for _ in range(2)]):
        with other.session_transaction("/api/session") as session:
            session.update(held)

    assert client.get("/api/spotify").json == NOT_CONNECTED
    assert [other.get("/api/spotify").json["status"] for other in others] == ["connected"] * 2


# --- registering -----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "during"])
def test_registering_does_not_take_over_a_newer_grant(
    new_client: NewClient, app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    connect(first := new_client(), sandbox)
    second, passwords = new_client(), app.extensions["backline"].passwords
    hash_password = passwords.hash

    def slow_hash(password: str) -> str:
        call_separately(connect, second, sandbox)
        return str(hash_password(password))

    if when == "before":
        connect(second, sandbox)
    else:
        monkeypatch.setattr(passwords, "hash", slow_hash)
    register(first, "ada")

    assert first.get("/api/spotify").json == NOT_CONNECTED
    assert second.get("/api/spotify").json["status"] == "connected"
    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(SpotifyUser.user_id)).all() == [None]


@ONE_DATABASE
def test_claiming_a_connection_ends_other_visitor_sessions(
    client: FlaskClient, app: Flask, new_client: NewClient, sandbox: SandboxClient
) -> None:
    """A duplicate callback gets a second session with the same grant."""
    connect(client, sandbox)
    held = connection_in_session(client)
    with (other := new_client()).session_transaction("/api/session") as session:
        session.update(held)
    assert other.get("/api/spotify").json["status"] == "connected"

    register(client, "ada")

    assert client.get("/api/spotify").json["status"] == "connected"
    assert_not_connected(other)
    assert len(sessions_of(client)) == 1


@ONE_DATABASE
def test_signed_in_session_uses_only_the_users_own_connection(
    client: FlaskClient, app: Flask, new_client: NewClient, sandbox: SandboxClient
) -> None:
    """Even if the session names a visitor's connection, with its grant."""
    connect(visitor := new_client(), sandbox)
    held = connection_in_session(visitor)
    register(client, "ada")
    [key] = [
        key
        for key in app.extensions["backline"].redis.keys("session:*")
        if stored_sessions.read(app, key)["user_id"] is not None
    ]
    stored_sessions.change(app, key, **held)

    assert client.get("/api/spotify").json == NOT_CONNECTED
    assert client.delete("/api/spotify").status_code == 204
    assert visitor.get("/api/spotify").json["status"] == "connected"


@ONE_DATABASE
def test_concurrent_callbacks_of_a_visitor_leave_them_connected(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    """The second must not replace the grant of the first and then be rejected."""
    one, two = (sandbox.consent(start_authorization(client)) for _ in range(2))
    assert callback_query(one)["state"] != callback_query(two)["state"]
    tab = another_tab(client)
    sandbox.fault(on="me", kind="park", times=2)
    responses = []
    calls = [
        threading.Thread(target=lambda c=c, back=back: responses.append((c, send_callback(c, back))))
        for c, back in ((client, one), (tab, two))
    ]
    for call in calls:
        call.start()
    sandbox.wait_for_held(2)
    sandbox.release()
    for call in calls:
        call.join(LONG)

    assert sorted(response.status_code for _, response in responses) == [200, 400]
    [winner] = [used for used, response in responses if response.status_code == 200]
    assert winner.get("/api/spotify").json["status"] == "connected"
