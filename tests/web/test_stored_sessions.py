"""Stored sessions are encrypted and bound to their key, so write access to Redis grants nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.clock import utc_now
from app.infra.database import writing
from app.models import User
from app.web.access import public
from tests.helpers import stored_sessions
from tests.helpers.flows import PASSWORD, another_tab, connect, login, register
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NewClient = Callable[[], FlaskClient]
DAY = 86_400


@pytest.fixture
def store(app: Flask) -> redis.Redis:
    found: redis.Redis = app.extensions["backline"].redis
    return found


def key_of(client: FlaskClient, name: str = "backline_session") -> bytes:
    """Return the Redis key of a client's session."""
    cookie = client.get_cookie(name)
    assert cookie is not None
    interface = client.application.session_interface
    key: str = interface._get_store_id(cookie.value)  # type: ignore[attr-defined]
    return key.encode()


def signed_in(client: FlaskClient) -> bool:
    """Check whether a client is signed in, with two routes that must agree."""
    said: bool = client.get("/api/session").json["authenticated"]
    assert client.get("/api/user").status_code == (200 if said else 401)
    return said


# --- write access to Redis -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["COPY", "RENAME", "SET"])
def test_session_copied_to_another_key_counts_as_none(
    new_client: NewClient, store: redis.Redis, how: str
) -> None:
    """An attacker with write access replaces their own session with the victim's."""
    register(victim := new_client(), "ada")
    register(attacker := new_client(), "eve")
    source, target = key_of(victim), key_of(attacker)
    if how == "RENAME":
        store.restore(target, 0, store.dump(source), replace=True)  # as in a cluster, between two nodes
        store.delete(source)
    elif how == "COPY":
        store.restore(target, 0, store.dump(source), replace=True)
    else:
        store.set(target, store.get(source))

    assert not signed_in(attacker)


def test_forged_session_counts_as_none(new_client: NewClient, app: Flask, store: redis.Redis) -> None:
    """Sessions in the format of an earlier release, truncated, or modified."""
    user = register(client := new_client(), "ada")
    key = key_of(client)
    data = stored_sessions.read(app, key)
    raw = store.get(key)
    assert isinstance(raw, bytes)
    bit_flipped = raw[:-1] + bytes([raw[-1] ^ 1])
    for forged in (msgspec.msgpack.encode(data), raw[1:], bit_flipped, b"\x02" + raw[1:], raw[:20], b"\x01"):
        store.set(key, forged)
        assert not signed_in(client), forged[:4]
    store.set(key, raw)
    assert signed_in(client)
    assert user["username"].encode() not in raw
    assert data["address"].encode() not in raw


def test_entries_planted_in_an_index_are_ignored(new_client: NewClient, store: redis.Redis) -> None:
    """Otherwise, the list of sessions would show other people's addresses and devices."""
    register(victim := new_client(), "ada")
    user = register(attacker := new_client(), "eve")
    index = f"sessions-of:{user['id']}"
    planted = [key_of(victim), b"\xff\xfe", b"version:x", b"session:" + b"0" * 64, b""]
    store.zadd(index, dict.fromkeys(planted, 4e9))
    store.set("version:x", b"another value")

    seen = attacker.get("/api/user/sessions")

    assert [session["current"] for session in seen.json["items"]] == [True]
    assert attacker.delete("/api/user/sessions").status_code == 204
    assert store.get("version:x") == b"another value"
    assert signed_in(attacker)


# --- after a database backup is restored ----------------------------------------------------------


def test_old_session_does_not_belong_to_the_next_owner_of_an_id(
    client: FlaskClient, app: Flask, new_client: NewClient
) -> None:
    """A backup from before `ada` registered is restored, and `bob` gets the same id."""
    user = register(client, "ada")
    assert signed_in(client)
    with app.app_context(), writing() as db:
        db.execute(sa.delete(User))
        db.add(User(id=user["id"], username="bob", email="bob@example.com", password_hash="x"))

    assert not signed_in(client)


def test_visitors_session_does_not_belong_to_the_next_connection_with_its_id(
    client: FlaskClient, app: Flask, new_client: NewClient, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    with app.app_context(), writing() as db:
        for table in ("access_tokens", "spotify_users", "sqlite_sequence"):
            db.execute(sa.text(f"DELETE FROM {table}"))
    connect(other := new_client(), sandbox, person="aiko-87")
    with app.app_context(), writing() as db:
        assert db.scalar(sa.text("SELECT id FROM spotify_users")) == 1  # the same id as the first one

    assert client.get("/api/spotify").json == {"status": "not_connected"}
    assert other.get("/api/spotify").json["status"] == "connected"


def test_session_epochs_are_random_and_change_with_the_password(app: Flask, new_client: NewClient) -> None:
    def epochs() -> set[int]:
        with app.app_context(), writing() as db:
            return set(db.scalars(sa.select(User.session_epoch)))

    for name in ("ada", "bob"):
        register(client := new_client(), name)
    before = epochs()
    change = {"current_password": "a long sentence is best", "new_password": "another sentence, and longer"}
    assert client.put("/api/user/password", json=change).status_code == 204

    assert len(before) == 2
    assert len(epochs() | before) == 3
    assert all(abs(epoch) > 2**32 for epoch in epochs() | before)  # fails once in 700 million runs


# --- the cookie ------------------------------------------------------------------------------------


def set_cookies(response: object) -> list[str]:
    return response.headers.getlist("Set-Cookie")  # type: ignore[attr-defined, no-any-return]


def age(client: FlaskClient, **members: object) -> None:
    stored_sessions.change(client.application, key_of(client), **members)


def test_cookie_is_set_again_once_a_day_with_its_remaining_lifetime(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")
    now = utc_now().timestamp()
    age(client, created_at=now - 3 * DAY, cookie_set_at=now - DAY + 600)
    assert set_cookies(client.get("/api/user")) == []
    age(client, cookie_set_at=now - DAY - 1)
    id_before = key_of(client)

    [line] = set_cookies(client.get("/api/user"))

    [remaining] = [int(part.removeprefix("Max-Age=")) for part in line.split("; ") if "Max-Age" in part]
    assert 27 * DAY - 600 <= remaining <= 27 * DAY + 1
    assert key_of(client) == id_before
    assert set_cookies(client.get("/api/user")) == []
    assert set_cookies(client.get("/api/session")) == []


@pytest.mark.parametrize("seconds", [400, 10 * DAY])
def test_times_in_the_future_are_not_trusted(client: FlaskClient, seconds: int) -> None:
    """A server whose clock was ahead wrote them."""
    register(client, "ada")
    age(client, cookie_set_at=utc_now().timestamp() + seconds)
    assert len(set_cookies(client.get("/api/user"))) == 1

    age(client, signed_in_at=utc_now().timestamp() + seconds)
    assert client.delete("/api/user/sessions").status_code == 403

    age(client, created_at=utc_now().timestamp() + seconds)
    assert not signed_in(client)


def test_session_from_a_clock_slightly_ahead_is_valid(client: FlaskClient) -> None:
    register(client, "ada")
    ahead = utc_now().timestamp() + 120
    age(client, created_at=ahead, cookie_set_at=ahead, signed_in_at=ahead)

    assert signed_in(client)
    assert client.delete("/api/user/sessions").status_code == 204


behind_https = pytest.mark.settings(SESSION_COOKIE_SECURE="true")
HTTPS = {"base_url": "https://api.example.com"}


@behind_https
def test_cookie_with_the_old_name_is_accepted_and_replaced(
    client: FlaskClient, new_client: NewClient
) -> None:
    body = {"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"}
    client.post("/api/register", json=body, **HTTPS)
    cookie = client.get_cookie("__Host-Http-session", domain="api.example.com")
    assert cookie is not None
    old = new_client()
    old.set_cookie("__Host-session", cookie.value, domain="api.example.com", secure=True)

    seen = old.get("/api/user", **HTTPS)
    lines = set_cookies(seen)
    again = old.get("/api/user", **HTTPS)

    assert seen.json["username"] == "ada"
    assert [line.partition("=")[0] for line in lines] == ["__Host-Http-session", "__Host-session"]
    assert lines[0].startswith(f"__Host-Http-session={cookie.value};")
    assert lines[1].startswith("__Host-session=;")
    assert (again.status_code, set_cookies(again)) == (200, [])


@behind_https
def test_signing_out_deletes_the_cookie_under_both_names(client: FlaskClient) -> None:
    body = {"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"}
    client.post("/api/register", json=body, **HTTPS)
    cookie = client.get_cookie("__Host-Http-session", domain="api.example.com")
    assert cookie is not None
    client.set_cookie("__Host-session", cookie.value, domain="api.example.com", secure=True)

    lines = set_cookies(client.post("/api/logout", **HTTPS))

    assert {line.partition(";")[0] for line in lines} == {"__Host-Http-session=", "__Host-session="}
    for name in ("__Host-session", "__Host-Http-session"):
        client.set_cookie(name, cookie.value, domain="api.example.com", secure=True)
    assert client.get("/api/user", **HTTPS).status_code == 401


@behind_https
def test_signing_out_ends_the_sessions_of_both_cookies(client: FlaskClient, new_client: NewClient) -> None:
    """After a rollback to the earlier release, a browser has one cookie under each name."""
    held = {}
    for name, browser in (("ada", client), ("grace", new_client())):
        body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        browser.post("/api/register", json=body, **HTTPS)
        cookie = browser.get_cookie("__Host-Http-session", domain="api.example.com")
        assert cookie is not None
        held[name] = cookie.value
    client.set_cookie("__Host-session", held["grace"], domain="api.example.com", secure=True)

    assert client.get("/api/user", **HTTPS).json["username"] == "ada"
    assert client.post("/api/logout", **HTTPS).status_code == 204

    for sid in held.values():
        client.set_cookie("__Host-Http-session", sid, domain="api.example.com", secure=True)
        assert client.get("/api/user", **HTTPS).status_code == 401


def test_cookie_of_another_application_on_loopback_is_left_alone(client: FlaskClient) -> None:
    client.set_cookie("session", "of-another-flask-app")
    register(client, "ada")
    client.post("/api/logout")

    assert client.get_cookie("session").value == "of-another-flask-app"  # type: ignore[union-attr]
    assert login(client, "ada").status_code == 200


def test_one_of_several_concurrent_requests_refreshes_the_cookie(client: FlaskClient) -> None:
    register(client, "ada")
    age(client, cookie_set_at=utc_now().timestamp() - DAY - 1)
    tabs = [another_tab(client) for _ in range(8)]

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda tab: tab.get("/api/user"), tabs))

    assert [response.status_code for response in responses] == [200] * 8
    assert sum(len(set_cookies(response)) for response in responses) == 1


@pytest.mark.parametrize("change", ["disconnects", "signs out"])
def test_cookie_refresh_does_not_undo_other_changes(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, change: str
) -> None:
    """A slow request refreshes the cookie after another one has changed the session."""
    inside, go_on = threading.Event(), threading.Event()

    @app.get("/api/slow")
    @public
    def slow() -> dict[str, bool]:
        inside.set()
        assert go_on.wait(30)
        return {}

    connect(client, sandbox)
    age(client, cookie_set_at=utc_now().timestamp() - DAY - 1)
    tab = another_tab(client)
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(another_tab(client).get, "/api/slow")
        assert inside.wait(30)
        if change == "disconnects":
            assert client.delete("/api/spotify").status_code == 204
        else:
            assert client.post("/api/logout").status_code == 204
        go_on.set()
        assert set_cookies(response.result()) == []

    assert tab.get("/api/spotify").json == {"status": "not_connected"}
