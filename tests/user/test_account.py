"""The account: profile, password, sessions, export, and deletion."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.auth.passwords import Passwords
from app.errors import NotSignedIn
from app.infra.database import db, reading, writing
from app.models import User
from app.services import services
from app.spotify.clients.application import Application
from app.spotify.clients.consent import Consent
from app.spotify.clients.profile import Profile
from app.spotify.clients.token_response import TokenResponse
from app.spotify.connections import Connections
from app.user.account import UserAccounts
from app.web.sessions import index as session_index
from tests.helpers import stored_sessions
from tests.helpers.factories import advance_time
from tests.helpers.flows import (
    PASSWORD,
    another_tab,
    connect,
    create_token,
    login,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.sandbox_client import SandboxClient

NEW_PASSWORD = "another sentence, and longer"


def store_of(app: Flask) -> redis.Redis:
    found: redis.Redis = app.extensions["backline"].redis
    return found


def rows(app: Flask) -> dict[str, int]:
    """Count the rows of each table."""
    with app.app_context(), reading() as session:
        return {
            name: session.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in db.metadata.tables.items()
        }


# --- profile -------------------------------------------------------------------------------------


def test_username_can_be_changed(client: FlaskClient, new_client: Callable[[], FlaskClient]) -> None:
    before = register(client, "ada")

    response = client.patch("/api/user", json={"username": " LOVELACE "})

    assert (response.status_code, response.json) == (200, {**before, "username": "lovelace"})
    assert client.get("/api/user").json["username"] == "lovelace"
    assert login(new_client(), "lovelace").status_code == 200
    assert login(new_client(), "ada").status_code == 401


@pytest.mark.sqlite_only
def test_new_address_requires_the_password(client: FlaskClient) -> None:
    register(client, "ada")

    without = client.patch("/api/user", json={"email": "new@example.com"})
    wrong = client.patch("/api/user", json={"email": "new@example.com", "current_password": "not it at all"})
    unchanged = client.patch("/api/user", json={"email": "ADA@example.com "})

    assert (without.status_code, list(without.json["errors"])) == (422, ["current_password"])
    assert (wrong.status_code, slug(wrong)) == (401, "invalid-credentials")
    assert (unchanged.status_code, unchanged.json["email"]) == (200, "ada@example.com")


def test_profile_change_rejects_taken_names_and_addresses(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(new_client(), "grace")
    before = register(client, "ada")

    for change, problem in (
        ({"username": "Grace"}, "username-taken"),
        ({"email": "GRACE@example.com", "current_password": PASSWORD}, "email-taken"),
    ):
        response = client.patch("/api/user", json={"username": "eve", **change})
        assert (response.status_code, slug(response)) == (409, problem)
    assert client.get("/api/user").json == before


@pytest.mark.requirement("B4")
def test_concurrent_changes_of_different_fields_are_both_kept(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tab that starts first and ends last must not revert what the other one has changed."""
    register(client, "ada")
    begun, released = threading.Event(), threading.Event()
    change_profile = UserAccounts.change_profile

    def change_late(accounts: UserAccounts, user: User, *, username: str | None, email: str | None) -> User:
        if username is not None:
            begun.set()
            assert released.wait(30)
        return change_profile(accounts, user, username=username, email=email)

    monkeypatch.setattr(UserAccounts, "change_profile", change_late)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(another_tab(client).patch, "/api/user", json={"username": "lovelace"})
        assert begun.wait(30)
        change = {"email": "new@example.com", "current_password": PASSWORD}
        assert client.patch("/api/user", json=change).status_code == 200
        released.set()
        assert slow.result().status_code == 200

    user = client.get("/api/user").json
    assert (user["username"], user["email"]) == ("lovelace", "new@example.com")


@pytest.mark.sqlite_only
def test_profile_change_without_changes_changes_nothing(client: FlaskClient) -> None:
    before = register(client, "ada")

    assert client.patch("/api/user", json={}).json == before
    assert client.patch("/api/user", json={"username": "ada"}).json == before


def test_concurrent_changes_to_one_username_succeed_once(
    new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    clients = [new_client() for _ in range(6)]
    for each in clients:
        register(each)

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda each: each.patch("/api/user", json={"username": "ada"}), clients))

    assert sorted(response.status_code for response in responses) == [200] + [409] * 5


# --- password ------------------------------------------------------------------------------------


def change_password(client: FlaskClient, current: str, new: str) -> int:
    body = {"current_password": current, "new_password": new}
    return client.put("/api/user/password", json=body).status_code


@pytest.mark.requirement("A8")
def test_password_change_ends_all_other_sessions(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(client, "ada")
    login(elsewhere := new_client(), "ada")
    old_token = client.get_cookie("backline_session").value  # type: ignore[union-attr]

    assert change_password(client, PASSWORD, NEW_PASSWORD) == 204

    assert client.get("/api/user").status_code == 200
    assert client.get_cookie("backline_session").value != old_token  # type: ignore[union-attr]
    assert elsewhere.get("/api/user").status_code == 401
    assert elsewhere.get("/api/session").json == {"authenticated": False, "user": None, "spotify": None}
    (old := new_client()).set_cookie("backline_session", old_token)
    assert old.get("/api/user").status_code == 401
    assert login(new_client(), "ada").status_code == 401
    again = new_client().post("/api/login", json={"login": "ada", "password": NEW_PASSWORD})
    assert again.status_code == 200


@pytest.mark.requirement("A8")
@pytest.mark.sqlite_only
def test_password_change_requires_the_current_password(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(client, "ada")

    assert change_password(client, "not the password", NEW_PASSWORD) == 401
    assert login(new_client(), "ada").status_code == 200


@pytest.mark.requirement("A8")
@pytest.mark.sqlite_only
def test_password_change_throttles_wrong_current_passwords(client: FlaskClient) -> None:
    register(client, "ada")

    statuses = [change_password(client, f"guess number {number}", NEW_PASSWORD) for number in range(12)]

    assert statuses == [401] * 10 + [429] * 2
    # Other routes count attempts together with this one.
    assert client.delete("/api/user", json={"password": "guess"}).status_code == 429


@pytest.mark.sqlite_only
def test_rejected_new_password_changes_nothing(client: FlaskClient) -> None:
    register(client, "ada")

    for new in ("short", "x" * 257, "password1", "spotify!", "ada@example.com", "ada12345"):
        response = client.put("/api/user/password", json={"current_password": PASSWORD, "new_password": new})
        assert (response.status_code, list(response.json["errors"])) == (422, ["new_password"]), new
    assert client.get("/api/user").status_code == 200


def test_concurrent_password_changes_succeed_once(
    client: FlaskClient, new_client: Callable[[], FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who has stolen a session and the password must not override the owner's change."""
    register(client, "ada")
    login(other := new_client(), "ada")
    both_have_confirmed = threading.Barrier(2)
    hash_password = Passwords.hash

    def hash_together(passwords: Passwords, password: str) -> str:
        both_have_confirmed.wait(30)
        return hash_password(passwords, password)

    monkeypatch.setattr(Passwords, "hash", hash_together)
    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(lambda each: change_password(each, PASSWORD, NEW_PASSWORD), (client, other)))

    assert sorted(statuses) == [204, 401]


@pytest.mark.sqlite_only
def test_session_stored_during_a_password_change_is_invalid(
    client: FlaskClient, app: Flask, new_client: Callable[[], FlaskClient]
) -> None:
    """Its sign-in checked the old password, and it is stored after the other sessions have ended."""
    register(client, "ada")
    login(late := new_client(), "ada")
    store = store_of(app)
    kept = {key: store.get(key) for key in store.keys("session:*")}

    change_password(client, PASSWORD, NEW_PASSWORD)
    for key, data in kept.items():
        store.set(key, data)

    assert late.get("/api/user").status_code == 401
    assert late.get("/api/session").json["authenticated"] is False
    for key in kept:
        store.zadd(store.keys("sessions-of:*")[0], {key: 4e9})
    assert [session["current"] for session in sessions_of(client)] == [True]


def test_ended_session_cannot_use_the_connection(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    login(late := new_client(), "ada")
    store = store_of(app)
    kept = {key: store.get(key) for key in store.keys("session:*")}
    change_password(client, PASSWORD, NEW_PASSWORD)
    for key, data in kept.items():
        store.set(key, data)

    assert late.get("/api/spotify").json == {"status": "not_connected"}
    assert late.get("/api/spotify/token").status_code == 409
    assert late.delete("/api/spotify").status_code == 204
    assert client.get("/api/spotify").json["status"] == "connected"


# --- sessions ------------------------------------------------------------------------------------


def sessions_of(client: FlaskClient) -> list[dict[str, object]]:
    response = client.get("/api/user/sessions")
    assert response.status_code == 200, response.text
    found: list[dict[str, object]] = response.json["items"]
    return found


@pytest.mark.requirement("B10")
@pytest.mark.sqlite_only
def test_session_list_shows_where_a_user_is_signed_in(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    register(client, "ada")
    (phone := new_client()).environ_base |= {
        "HTTP_USER_AGENT": "Phone/1.0 " + "x" * 500,
        "REMOTE_ADDR": "203.0.113.9",
    }
    login(phone, "ada")
    login(another := new_client(), "ada")
    another.post("/api/logout")
    register(new_client(), "grace")

    listed = sessions_of(client)

    assert [session["current"] for session in listed] == [True, False]
    here, there = listed
    assert (here["ip"], there["ip"]) == ("127.0.0.1", "203.0.113.9")
    assert str(there["user_agent"]).startswith("Phone/1.0 ")
    assert len(str(there["user_agent"])) == 256
    assert {type(session["id"]) for session in listed} == {str}
    cookies = {each.get_cookie("backline_session").value for each in (client, phone)}  # type: ignore[union-attr]
    assert cookies.isdisjoint(str(session["id"]) for session in listed)
    for session in listed:
        for moment in ("created_at", "last_seen_at"):
            age = datetime.now(UTC) - datetime.fromisoformat(str(session[moment]))
            assert timedelta(seconds=-2) < age < timedelta(minutes=5)


@pytest.mark.sqlite_only
def test_last_seen_time_needs_no_write(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    register(client, "ada")
    login(phone := new_client(), "ada")
    store = store_of(app)
    phones = next(session["id"] for session in sessions_of(client) if not session["current"])
    store.pexpire(f"session:{_rest(store, str(phones))}", timedelta(days=6, hours=1))
    there = sessions_of(client)[1]
    age = datetime.now(UTC) - datetime.fromisoformat(str(there["last_seen_at"]))
    assert timedelta(hours=22, minutes=55) < age < timedelta(hours=23, minutes=5)

    phone.get("/api/user")  # this process has not read the session before
    writes = store.info("commandstats").get("cmdstat_set", {}).get("calls", 0)
    phone.get("/api/user")

    assert store.info("commandstats").get("cmdstat_set", {}).get("calls", 0) == writes
    there = sessions_of(client)[1]
    assert datetime.now(UTC) - datetime.fromisoformat(str(there["last_seen_at"])) < timedelta(minutes=5)


def _rest(store: redis.Redis, public_id: str) -> str:
    [key] = store.keys(f"session:{public_id}*")
    return str(key.decode()).removeprefix("session:")


@pytest.mark.requirement("B10")
@pytest.mark.sqlite_only
def test_single_session_can_be_ended(client: FlaskClient, new_client: Callable[[], FlaskClient]) -> None:
    register(client, "ada")
    login(phone := new_client(), "ada")
    login(laptop := new_client(), "ada")
    phones = next(session["id"] for session in sessions_of(phone) if session["current"])

    for _ in range(2):
        assert client.delete(f"/api/user/sessions/{phones}").status_code == 204

    assert phone.get("/api/user").status_code == 401
    assert laptop.get("/api/user").status_code == 200
    assert len(sessions_of(client)) == 2


@pytest.mark.requirement("B10")
@pytest.mark.sqlite_only
def test_all_other_sessions_can_be_ended(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    register(client, "ada")
    others = [new_client() for _ in range(3)]
    for other in others:
        login(other, "ada")
    register(grace := new_client(), "grace")

    assert client.delete("/api/user/sessions").status_code == 204

    assert [other.get("/api/user").status_code for other in others] == [401] * 3
    assert client.get("/api/user").status_code == 200
    assert grace.get("/api/user").status_code == 200
    assert len(store_of(app).keys("session:*")) == 2


def age_sign_in(client: FlaskClient, **members: object) -> None:
    app = client.application
    for key in store_of(app).keys("session:*"):
        stored_sessions.change(app, key, **members)


@pytest.mark.sqlite_only
def test_ending_others_requires_a_recent_login_or_the_password(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(client, "ada")
    login(phone := new_client(), "ada")
    login(laptop := new_client(), "ada")
    age_sign_in(client, signed_in_at=datetime.now(UTC).timestamp() - 15 * 60 - 1)
    phones = next(session["id"] for session in sessions_of(phone) if session["current"])

    for path in ("/api/user/sessions", f"/api/user/sessions/{phones}"):
        stale = client.delete(path)
        wrong = client.delete(path, json={"current_password": "not the password"})
        assert (stale.status_code, slug(stale)) == (403, "fresh-sign-in-required")
        assert (wrong.status_code, slug(wrong)) == (401, "invalid-credentials")
        assert phone.get("/api/user").status_code == 200
    right = {"current_password": PASSWORD}
    assert client.delete(f"/api/user/sessions/{phones}", json=right).status_code == 204
    assert phone.get("/api/user").status_code == 401
    assert client.delete("/api/user/sessions", json=right).status_code == 204
    assert laptop.get("/api/user").status_code == 401


@pytest.mark.sqlite_only
def test_optional_body_may_be_empty_with_a_content_type(client: FlaskClient) -> None:
    """Many HTTP libraries send a content type with every request."""
    register(client, "ada")

    for path in ("/api/user/sessions", f"/api/user/sessions/{'0' * 32}"):
        assert client.delete(path, data=b"", content_type="application/json").status_code == 204
        assert client.delete(path, data=b"{", content_type="application/json").status_code == 400
        assert client.delete(path, data=b"a", content_type="text/plain").status_code == 415


@pytest.mark.sqlite_only
def test_session_without_a_login_time_is_not_recent(client: FlaskClient) -> None:
    register(client, "ada")
    age_sign_in(client, signed_in_at=None)

    assert client.delete("/api/user/sessions").status_code == 403


@pytest.mark.sqlite_only
def test_ending_the_own_session_requires_no_recent_login(client: FlaskClient) -> None:
    register(client, "ada")
    age_sign_in(client, signed_in_at=0)
    [here] = sessions_of(client)

    assert client.delete(f"/api/user/sessions/{here['id']}").status_code == 204
    assert client.get("/api/user").status_code == 401


@pytest.mark.sqlite_only
def test_ending_sessions_throttles_wrong_passwords(client: FlaskClient) -> None:
    register(client, "ada")

    statuses = [
        client.delete("/api/user/sessions", json={"current_password": f"guess {number}"}).status_code
        for number in range(12)
    ]

    assert statuses == [401] * 10 + [429] * 2


@pytest.mark.sqlite_only
def test_ending_the_own_session_signs_out(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")
    [here] = sessions_of(client)

    assert client.delete(f"/api/user/sessions/{here['id']}").status_code == 204

    assert client.get_cookie("backline_session") is None
    assert store_of(app).keys("session*") == []


@pytest.mark.sqlite_only
def test_session_of_another_user_looks_like_an_unknown_one(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(client, "ada")
    register(grace := new_client(), "grace")
    [graces] = sessions_of(grace)

    responses = [client.delete(f"/api/user/sessions/{name}") for name in (graces["id"], "0" * 32, "nonsense")]

    assert [(response.status_code, response.data) for response in responses] == [(204, b"")] * 3
    assert grace.get("/api/user").status_code == 200


@pytest.mark.sqlite_only
def test_expired_sessions_are_not_listed(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask
) -> None:
    register(client, "ada")
    login(new_client(), "ada")
    store, [index] = store_of(app), store_of(app).keys("sessions-of:*")
    phones = next(session["id"] for session in sessions_of(client) if not session["current"])
    key = f"session:{_rest(store, str(phones))}"
    store.delete(key)

    assert [session["current"] for session in sessions_of(client)] == [True]
    assert store.zcard(index) == 2  # a new session is in the index before it is stored
    store.zincrby(index, -session_index.YOUNG_SECONDS - 1, key)
    assert [session["current"] for session in sessions_of(client)] == [True]
    assert store.zcard(index) == 1


@pytest.mark.requirement("H4")
@pytest.mark.sqlite_only
def test_user_has_at_most_a_hundred_sessions(
    client: FlaskClient, new_client: Callable[[], FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session_index.MAX_SESSIONS == 100
    monkeypatch.setattr(session_index, "MAX_SESSIONS", 3)
    register(client, "ada")
    others = [new_client() for _ in range(3)]
    for other in others:
        login(other, "ada")

    assert client.get("/api/user").status_code == 401
    assert [other.get("/api/user").status_code for other in others] == [200] * 3
    assert len(sessions_of(others[0])) == 3


# --- export --------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_export_contains_everything_except_tokens(client: FlaskClient, sandbox: SandboxClient) -> None:
    user = register(client, "ada")
    spotify = connect(client, sandbox)

    response = client.get("/api/user/export")

    assert response.status_code == 200
    assert response.headers["Content-Disposition"].startswith("attachment")
    export = response.json
    assert export.keys() == {
        *("exported_at", "user", "sessions", "tokens"),
        *("spotify_app", "spotify", "spotify_refreshes"),
    }
    assert user.items() <= export["user"].items()
    assert spotify.items() <= export["spotify"].items()
    assert len(export["sessions"]) == 1
    assert "hash" not in response.text
    assert "token" not in re.sub('"(access_token_expires_at|tokens)"', "", response.text)


@pytest.mark.sqlite_only
def test_export_contains_every_personal_column(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client, "ada")
    connect(client, sandbox)
    create_token(client)
    export = client.get("/api/user/export").json
    ours = {
        "password_hash",
        "session_epoch",
        "user_id",
        "spotify_id",
        "spotify_app_id",
        "profile_due_at",
        "token_hash",
    }
    members = {*export["user"], *export["spotify"], *export["tokens"][0]}

    for table in ("users", "spotify_users", "personal_access_tokens"):
        columns = {column.name for column in db.metadata.tables[table].columns}
        renamed = {"created_at": "connected_at"} if table == "spotify_users" else {}
        missing = {column for column in columns - ours if renamed.get(column, column) not in members}
        assert missing == set(), table


# --- deletion ------------------------------------------------------------------------------------


def test_account_deletion_deletes_all_data(
    client: FlaskClient, new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    assert client.get("/api/spotify/v1/me").headers["X-Cache"] == "miss"  # cached from now on
    login(elsewhere := new_client(), "ada")
    (other := new_client()).environ_base["REMOTE_ADDR"] = "203.0.113.9"
    for name in ("ada", "ada@example.com"):
        other.post("/api/login", json={"login": name, "password": "not the password"})

    assert client.delete("/api/user", json={"password": PASSWORD}).status_code == 204

    assert set(rows(app).values()) == {0}
    store = store_of(app)
    assert store.keys("shared:*") == []  # cached responses
    # How many calls were made in the last half minute.
    calls = store.keys("spotify-calls:*")
    assert all(0 < store.ttl(key) <= 31 for key in calls)
    left = {key.decode().rsplit(":", 1)[0] for key in store.keys("*") if key not in calls}
    # Counters of an address and of an hour, and random labels, say nothing about the person.
    kinds = ("address:{guesses}", "registrations", "mails", "pair:{guesses}", "exchanges")
    random = {"version:user", "version:connection"}
    assert left <= {f"throttle:{kind}" for kind in kinds} | {"authorization", "hourly"} | random
    assert client.get_cookie("backline_session") is None
    assert elsewhere.get("/api/user").status_code == 401
    assert elsewhere.get("/api/spotify").json == {"status": "not_connected"}
    assert login(new_client(), "ada").status_code == 401
    assert register(new_client(), "ada")["username"] == "ada"


@pytest.mark.sqlite_only
def test_account_deletion_requires_the_password(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")

    wrong = client.delete("/api/user", json={"password": "not the password"})
    without = client.delete("/api/user")

    assert (wrong.status_code, slug(wrong)) == (401, "invalid-credentials")
    assert (without.status_code, list(without.json["errors"])) == (422, ["password"])
    assert rows(app)["users"] == 1


def test_account_deletion_fails_if_the_password_has_changed(
    client: FlaskClient, new_client: Callable[[], FlaskClient], monkeypatch: pytest.MonkeyPatch, app: Flask
) -> None:
    register(client, "ada")
    login(other := new_client(), "ada")
    delete = UserAccounts.delete

    def delete_late(accounts: UserAccounts, user: User) -> None:
        assert change_password(other, PASSWORD, NEW_PASSWORD) == 204
        delete(accounts, user)

    monkeypatch.setattr(UserAccounts, "delete", delete_late)
    response = client.delete("/api/user", json={"password": PASSWORD})

    assert (response.status_code, slug(response)) == (401, "invalid-credentials")
    assert rows(app)["users"] == 1


@pytest.mark.requirement("G3")
def test_account_deleted_during_a_refresh_stays_deleted(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    advance_time(app, sandbox, 3600)
    sandbox.fault(on="refresh", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(another_tab(client).get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        assert client.delete("/api/user", json={"password": PASSWORD}).status_code == 204
        sandbox.release()
        response = asking.result()

    assert (response.status_code, slug(response)) == (409, "spotify-not-connected")
    assert set(rows(app).values()) == {0}


@pytest.mark.requirement("G3")
def test_account_deleted_during_a_callback_gets_no_connection(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    slow = another_tab(client)
    sandbox.fault(on="code", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(send_callback, slow, callback)
        sandbox.wait_for_held(1)
        assert client.delete("/api/user", json={"password": PASSWORD}).status_code == 204
        sandbox.release()
        response = connecting.result()

    assert (response.status_code, slug(response)) == (401, "not-signed-in")
    assert set(rows(app).values()) == {0}


@pytest.mark.requirement("G3")
@pytest.mark.sqlite_only
def test_callback_of_an_ended_session_connects_nothing(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password reset during the callback deletes earlier connections, so this one must not be stored."""
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    store_grant = Connections.store_grant

    def store_late(stored: Connections, consent: Consent, **options: Any) -> Any:
        with writing() as session:
            session.execute(sa.update(User).values(session_epoch=5))
        return store_grant(stored, consent, **options)

    monkeypatch.setattr(Connections, "store_grant", store_late)
    response = send_callback(client, callback)

    assert (response.status_code, slug(response)) == (401, "not-signed-in")
    assert rows(app)["spotify_users"] == 0


@pytest.mark.requirement("G3")
def test_grant_is_not_stored_for_a_deleted_account(app: Flask) -> None:
    profile = Profile("mira_t_42", None, None, None, None, None)
    tokens = TokenResponse("at", "rt", 3600, "streaming")
    consent = Consent(profile, tokens, time.monotonic(), Application("id", "secret"))
    user = cast("Any", User(id=1, session_epoch=1))

    with app.app_context(), pytest.raises(NotSignedIn):
        services().connections.store_grant(consent, user=user)

    assert set(rows(app).values()) == {0}


def test_ids_of_deleted_accounts_are_not_reused(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    first = register(client, "ada")
    client.delete("/api/user", json={"password": PASSWORD})

    assert register(new_client(), "ada")["id"] > first["id"]


@pytest.mark.sqlite_only
def test_profile_changes_are_limited_to_thirty_an_hour(
    client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(new_client(), "grace")
    register(client, "ada")

    statuses = [client.patch("/api/user", json={"username": "grace"}).status_code for _ in range(31)]

    assert statuses == [409] * 30 + [429]
    assert client.patch("/api/user", json={"username": "ada"}).status_code == 200  # unchanged
