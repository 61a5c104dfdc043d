"""Sessions: stored in Redis, with a new id at sign-in, and never restored after they end."""

import ast
import json
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path

import flask
import msgspec
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.infra import clock
from app.web.access import public
from tests.conftest import SPA_REDIRECT_URI
from tests.helpers import set_cookie, stored_sessions
from tests.helpers.flows import (
    PASSWORD,
    another_tab,
    connect,
    login,
    register,
    send_callback,
    start_authorization,
)
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, eventually

pytestmark = pytest.mark.sqlite_only

RACES = int(os.environ.get("RACES", "200"))


def sid(client: FlaskClient) -> str:
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    return cookie.value


@pytest.fixture
def store(app: Flask) -> redis.Redis:
    """The Redis client of the app."""
    found: redis.Redis = app.extensions["backline"].redis
    return found


def session_keys(store: redis.Redis) -> list[bytes]:
    keys: list[bytes] = store.keys("session:*")
    return keys


def set_cookie_of(headers: list[str]) -> tuple[str, dict[str, str | bool]]:
    """Return the name and the attributes of the only Set-Cookie."""
    [line] = headers
    [(name, morsel)] = SimpleCookie(line).items()
    return name, {key: value for key, value in morsel.items() if value != "" and key != "expires"}


# --- the cookie ----------------------------------------------------------------------------------


@pytest.mark.requirement("B6")
@pytest.mark.settings(SESSION_COOKIE_SECURE="true")
def test_cookie_over_https_is_bound_to_the_host(client: FlaskClient) -> None:
    https = {"base_url": "https://api.example.com"}
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}

    signed_in = client.post("/api/register", json=body, **https)
    again = client.get("/api/user", **https)
    signed_out = client.post("/api/logout", **https)

    name, attributes = set_cookie_of(signed_in.headers.getlist("Set-Cookie"))
    assert name == "__Host-Http-session"
    assert attributes == {
        "max-age": str(30 * 86_400),
        "path": "/",
        "secure": True,
        "httponly": True,
        "samesite": "Lax",
    }
    assert again.status_code == 200
    assert again.headers.getlist("Set-Cookie") == []
    # Browsers ignore the deletion of a `__Host-` cookie without the required attributes.
    name, attributes = set_cookie_of(signed_out.headers.getlist("Set-Cookie"))
    assert name == "__Host-Http-session"
    assert attributes["max-age"] == "0"
    assert attributes["secure"] is True
    assert attributes["path"] == "/"
    assert client.get("/api/user", **https).status_code == 401


@pytest.mark.requirement("B6")
@pytest.mark.settings(
    SESSION_COOKIE_SECURE="true", SESSION_COOKIE_SAMESITE="None", SPOTIFY_REDIRECT_URI=SPA_REDIRECT_URI
)
def test_cookie_for_an_app_on_another_site_is_partitioned(client: FlaskClient) -> None:
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}

    response = client.post("/api/register", json=body, base_url="https://api.example.com")

    [line] = response.headers.getlist("Set-Cookie")
    attributes = {part.strip().lower() for part in line.split(";")[1:]}
    assert {"samesite=none", "secure", "partitioned", "httponly", "path=/"} <= attributes


@pytest.mark.requirement("B6")
@pytest.mark.settings(SESSION_COOKIE_SAMESITE="Strict", SPOTIFY_REDIRECT_URI=SPA_REDIRECT_URI)
def test_cookie_is_strict_if_the_redirect_leads_to_a_page(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)

    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    assert cookie.same_site == "Strict"


@pytest.mark.requirement("B6")
def test_cookie_over_plain_http_has_a_name_without_prefix(client: FlaskClient) -> None:
    register(client)

    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    assert (cookie.http_only, cookie.secure, cookie.same_site) == (True, False, "Lax")


@pytest.mark.requirement("B6")
def test_cookie_check_finds_invalid_cookies() -> None:
    """`tests/conftest.py` checks every Set-Cookie in any test this way."""
    session_id = "A" * 43
    for line in (
        "backline_session=abc; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax",
        "backline_session={id}; Max-Age=2592000; Path=/; SameSite=Lax",
        "backline_session={id}; HttpOnly; Max-Age=2592000; Path=/api; SameSite=Lax",
        "backline_session={id}; HttpOnly; Max-Age=2592000; Path=/",
        "backline_session={id}; Domain=example.com; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax",
        "session={id}; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax",
        "__Host-session={id}; Secure; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax",
        "__Host-Http-session={id}; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax",
        "__Host-Http-session=; HttpOnly; Max-Age=0; Path=/; SameSite=Lax",
        "__Host-Http-session={id}; Secure; HttpOnly; Max-Age=2592000; Path=/; SameSite=None",
        "__Host-Http-session={id}; Secure; Secure; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax",
    ):
        with pytest.raises(AssertionError):
            set_cookie.check(line.format(id=session_id))
    set_cookie.check(
        f"__Host-Http-session={session_id}; Secure; HttpOnly; Max-Age=2592000; Path=/; SameSite=Lax"
    )


# --- ids -----------------------------------------------------------------------------------------


@pytest.mark.requirement("B2")
def test_session_id_changes_at_every_sign_in(client: FlaskClient, store: redis.Redis) -> None:
    start_authorization(client)
    ids = [sid(client)]
    register(client, "ada")
    ids.append(sid(client))
    login(client, "ada")
    ids.append(sid(client))

    assert len(set(ids)) == 3
    assert len(session_keys(store)) == 1
    for old in ids[:2]:
        client.set_cookie("backline_session", old)
        assert client.get("/api/session").json["authenticated"] is False


@pytest.mark.requirement("B1")
def test_session_id_made_up_by_a_client_is_not_accepted(
    new_client: Callable[[], FlaskClient], store: redis.Redis
) -> None:
    made_up = ("", "x", "A" * 43, "../../etc/passwd", "session:" + "A" * 35, "A" * 4_000, "ä" * 43)
    for number, crafted in enumerate(made_up):
        (client := new_client()).set_cookie("backline_session", crafted)
        register(client)
        assert sid(client) != crafted
        assert len(session_keys(store)) == number + 1


def test_redis_contains_neither_the_session_id_nor_the_access_token(
    client: FlaskClient, store: redis.Redis, sandbox: SandboxClient
) -> None:
    register(client)
    connect(client, sandbox)
    token = client.get("/api/spotify/token").json["access_token"]

    dump = b"".join(key + (store.dump(key) or b"") for key in store.keys("*"))

    assert sid(client).encode() not in dump
    assert token.encode() not in dump


@pytest.mark.requirement("B2")
def test_planted_session_id_does_not_lead_to_the_visitors_connection(
    new_client: Callable[[], FlaskClient], store: redis.Redis, sandbox: SandboxClient
) -> None:
    attacker, victim = new_client(), new_client()
    start_authorization(attacker)
    planted = sid(attacker)
    victim.set_cookie("backline_session", planted)

    connect(victim, sandbox)

    assert sid(victim) != planted
    assert victim.get("/api/spotify").json["status"] == "connected"
    assert attacker.get("/api/spotify").json == {"status": "not_connected"}
    assert len(session_keys(store)) == 1


# --- data from Redis is not trusted -------------------------------------------------------------


class PickleBomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.requirement("B9")
def test_tampered_session_data_counts_as_no_session(
    client: FlaskClient, app: Flask, store: redis.Redis, tmp_path: Path
) -> None:
    """A dict changes only these members of a valid session."""
    register(client)
    [key] = session_keys(store)
    good = msgspec.msgpack.encode(stored_sessions.read(app, key))
    marker = tmp_path / "executed"
    tampered: list[bytes | dict[str, object]] = [
        b"",
        b"junk \xff\xfe",
        json.dumps({"user_id": 1, "created_at": 0}).encode(),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode(1),
        msgspec.msgpack.encode({"user_id": 1}),
        {"user_id": "1"},
        {"user_id": 2**63},
        {"user_id": 0},
        {"is_admin": True},
        {"created_at": float("nan")},
        {"created_at": 1e18},
        {"created_at": -1.0},
        {"created_at": None},
        {"created_at": 2.0**32 - 1},  # far in the future
        {"epoch": 2**63},
        {"spotify_user_id": 2**63},
        b"\x91" * 100_000,
        good[:-3],
        pickle.dumps(PickleBomb(marker)),
    ]
    for planted in tampered:
        tab = another_tab(client)
        changed = msgspec.msgpack.decode(good) | planted if isinstance(planted, dict) else None
        stored_sessions.write(app, key, planted if changed is None else msgspec.msgpack.encode(changed))

        response = tab.get("/api/session")

        assert (response.status_code, response.json["authenticated"]) == (200, False), planted
        for path in ("/api/user", "/api/user/sessions", "/api/user/export"):
            assert tab.get(path).status_code == 401
        for path in ("/api/spotify", "/api/spotify/authorize"):
            assert tab.get(path).status_code == 200
    assert not marker.exists()
    stored_sessions.write(app, key, good)
    assert client.get("/api/user").status_code == 200


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.requirement("B5")
def test_every_request_restarts_the_idle_timeout(client: FlaskClient, store: redis.Redis) -> None:
    register(client)
    [key] = session_keys(store)
    week = 7 * 86_400
    assert week - 300 <= store.ttl(key) <= week
    store.expire(key, 100)

    client.get("/api/user")

    assert week - 300 <= store.ttl(key) <= week


@pytest.mark.requirement("B5")
def test_visitors_session_is_short_until_it_has_a_connection(
    client: FlaskClient, store: redis.Redis, sandbox: SandboxClient
) -> None:
    """The session of a visitor who never returns from Spotify expires soon."""
    url, week = start_authorization(client), 7 * 86_400
    [key] = session_keys(store)
    assert 300 <= store.ttl(key) <= 600
    client.get("/api/session")
    assert 300 <= store.ttl(key) <= 600

    send_callback(client, sandbox.consent(url))

    [key] = session_keys(store)
    assert week - 300 <= store.ttl(key) <= week
    client.get("/api/session")
    assert week - 300 <= store.ttl(key) <= week
    client.delete("/api/spotify")
    assert 300 <= store.ttl(key) <= 600


@pytest.mark.requirement("B5")
def test_idle_session_ends(client: FlaskClient, store: redis.Redis) -> None:
    register(client)
    [key] = session_keys(store)
    store.pexpire(key, 1)
    eventually(lambda: not store.exists(key))

    assert client.get("/api/user").status_code == 401


@pytest.mark.requirement("B5")
def test_session_in_use_ends_at_its_absolute_timeout(
    client: FlaskClient, app: Flask, store: redis.Redis
) -> None:
    register(client)
    [key] = session_keys(store)
    now = clock.utc_now().timestamp()
    stored_sessions.change(app, key, created_at=now - 30 * 86_400 + 600)
    assert client.get("/api/user").status_code == 200
    stored_sessions.change(app, key, created_at=now - 30 * 86_400 - 60)

    assert client.get("/api/user").status_code == 401
    assert session_keys(store) == []


def test_sign_in_restarts_the_absolute_timeout(client: FlaskClient, app: Flask, store: redis.Redis) -> None:
    register(client, "ada")
    [key] = session_keys(store)
    data = stored_sessions.read(app, key)
    stored_sessions.change(app, key, created_at=data["created_at"] - 86_400)

    login(client, "ada")

    [key] = session_keys(store)
    assert stored_sessions.read(app, key)["created_at"] >= data["created_at"]


# --- an ended session stays ended ------------------------------------------------------------


@pytest.mark.requirement("B3")
def test_slow_request_does_not_restore_a_signed_out_session(
    client: FlaskClient, app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    """The slow request connects Spotify, so it writes to the session when it ends."""
    register(client, "ada")
    callback = sandbox.consent(start_authorization(client))
    slow = another_tab(client)
    old = sid(client)
    sandbox.fault(on="code", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(send_callback, slow, callback)
        sandbox.wait_for_held(1)
        assert client.post("/api/logout").status_code == 204
        sandbox.release()
        connecting.result()

    assert session_keys(store) == []
    client.set_cookie("backline_session", old)
    assert client.get("/api/session").json["authenticated"] is False


@pytest.mark.requirement("B3")
def test_slow_callback_does_not_restore_a_visitors_ended_session(
    client: FlaskClient, app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    callback = sandbox.consent(start_authorization(client))
    slow = another_tab(client)
    sandbox.fault(on="code", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(send_callback, slow, callback)
        sandbox.wait_for_held(1)
        client.post("/api/logout")
        sandbox.release()
        response = connecting.result()

    assert session_keys(store) == []
    assert "Set-Cookie" not in response.headers


@pytest.mark.requirement("B3")
@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the race happens in Redis
def test_no_session_is_restored_in_many_races(
    new_client: Callable[[], FlaskClient], app: Flask, store: redis.Redis
) -> None:
    """The session is signed out while one request reads it and another writes it."""
    inside, left = threading.Semaphore(0), threading.Event()

    @app.get("/api/slow")
    @public
    def slow() -> dict[str, bool]:
        flask.session.get("user_id")
        if "write" in flask.request.args:
            flask.session["spotify_user_id"] = 1
        inside.release()
        left.wait(60)
        return {}

    user_id = register(new_client(), "ada")["id"]
    store.flushdb()
    restored = 0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(RACES):
            client = new_client()
            with client.session_transaction() as session:
                session["user_id"] = user_id
            left.clear()
            requests = [
                pool.submit(another_tab(client).get, path) for path in ("/api/slow", "/api/slow?write=1")
            ]
            for _ in requests:
                inside.acquire()
            tab = another_tab(client)
            assert tab.post("/api/logout").status_code == 204
            left.set()
            for request in requests:
                assert "Set-Cookie" not in request.result().headers
            restored += bool(client.get("/api/session").json["authenticated"])
            restored += len(session_keys(store))
    assert restored == 0


@pytest.mark.requirement("B3")
def test_eight_concurrent_writers_do_not_restore_a_session(
    new_client: Callable[[], FlaskClient], app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    """Each request connects Spotify, and writes that to the session."""
    register(client := new_client(), "ada")
    callbacks = [sandbox.consent(start_authorization(client)) for _ in range(8)]
    sandbox.fault(on="code", kind="park", times=8)
    with ThreadPoolExecutor(8) as pool:
        connecting = [pool.submit(send_callback, another_tab(client), callback) for callback in callbacks]
        sandbox.wait_for_held(8)
        assert client.post("/api/logout").status_code == 204
        sandbox.release()
        responses = [each.result() for each in connecting]

    assert all("Set-Cookie" not in response.headers for response in responses)
    assert store.keys("session*") == []


@pytest.mark.requirement("B4")
def test_session_fields_are_written_in_known_places_only() -> None:
    """Fields that are written together with the id cannot be changed by a concurrent request."""
    written: dict[str, set[str]] = {}
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Store | ast.Del)
                and isinstance(node.value, ast.Name)
                and node.value.id == "session"
            ):
                assert isinstance(node.slice, ast.Constant)
                written.setdefault(path.relative_to(ROOT / "app").as_posix(), set()).add(
                    str(node.slice.value)
                )

    assert written == {
        "auth/login.py": {"user_id", "epoch", "signed_in_at"},
        "web/sessions/__init__.py": {"address", "user_agent"},
        "web/sessions/interface.py": {"cookie_set_at"},
        "spotify/session_connection.py": {"spotify_user_id", "grant_id", "owner_epoch"},
    }


@pytest.mark.requirement("B4")
def test_concurrent_writers_do_not_undo_each_other(
    client: FlaskClient, app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    """Tabs connect Spotify while others read. Only the connection in the session changes."""
    register(client, "ada")
    [key] = session_keys(store)
    before = stored_sessions.read(app, key)
    callbacks = [sandbox.consent(start_authorization(client)) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(
                lambda act: act(),
                [lambda back=back: send_callback(another_tab(client), back) for back in callbacks]
                + [lambda: another_tab(client).get("/api/session")] * 8,
            )
        )

    assert {response.status_code for response in responses} == {200}
    after = stored_sessions.read(app, key)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"spotify_user_id", "grant_id"}


@pytest.mark.requirement("B8")
def test_visitors_get_neither_cookies_nor_keys(client: FlaskClient, store: redis.Redis) -> None:
    paths = ("/api/session", "/api/spotify", "/api/user", "/livez", "/api/nothing")
    for path in paths * 10:
        assert "Set-Cookie" not in client.get(path).headers
    assert store.dbsize() == 0


@pytest.mark.requirement("B8")
def test_cookie_is_set_only_when_its_id_is_issued(client: FlaskClient, sandbox: SandboxClient) -> None:
    register(client, "ada")
    connect(client, sandbox)
    for path in ("/api/user", "/api/session", "/api/spotify", "/api/spotify/authorize", "/api/user/sessions"):
        assert "Set-Cookie" not in client.get(path).headers


def test_sessions_of_one_person_end_independently(new_client: Callable[[], FlaskClient]) -> None:
    one, two = new_client(), new_client()
    register(one, "ada")
    login(two, "ada")

    one.post("/api/logout")

    assert one.get("/api/user").status_code == 401
    assert two.get("/api/user").status_code == 200
