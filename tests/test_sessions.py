"""Sessions: kept in Redis, renewed at sign-in, and final when they end."""

import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path

import msgspec
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app import clock
from tests.journeys import PASSWORD, another_tab, come_back, connect, first_visit, login, register
from tests.sandbox_client import SandboxClient
from tests.services import eventually


def sid(client: FlaskClient) -> str:
    cookie = client.get_cookie("session")
    assert cookie is not None
    return cookie.value


@pytest.fixture
def store(app: Flask) -> redis.Redis:
    """The Redis that the app keeps its sessions in."""
    found: redis.Redis = app.extensions["backline"].redis
    return found


def session_keys(store: redis.Redis) -> list[bytes]:
    return store.keys("session:*")


def set_cookie_of(headers: list[str]) -> tuple[str, dict[str, str | bool]]:
    """Name and attributes of the only Set-Cookie."""
    [line] = headers
    [(name, morsel)] = SimpleCookie(line).items()
    return name, {key: value for key, value in morsel.items() if value != "" and key != "expires"}


# --- the cookie ----------------------------------------------------------------------------------


def test_the_cookie_of_a_secure_site_is_bound_to_it(
    env: dict[str, str], request: pytest.FixtureRequest
) -> None:
    env["SESSION_COOKIE_SECURE"] = "true"
    client = request.getfixturevalue("client")
    https = {"base_url": "https://api.example.com"}
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}

    signed_in = client.post("/api/register", json=body, **https)
    again = client.get("/api/user", **https)
    signed_out = client.post("/api/logout", **https)

    name, attributes = set_cookie_of(signed_in.headers.getlist("Set-Cookie"))
    assert name == "__Host-session"
    assert attributes == {
        "max-age": str(30 * 86_400),
        "path": "/",
        "secure": True,
        "httponly": True,
        "samesite": "Lax",
    }
    assert again.status_code == 200
    assert again.headers.getlist("Set-Cookie") == []
    # A browser ignores the deletion of a `__Host-` cookie that does not carry its attributes.
    name, attributes = set_cookie_of(signed_out.headers.getlist("Set-Cookie"))
    assert name == "__Host-session"
    assert attributes["max-age"] == "0"
    assert attributes["secure"] is True
    assert attributes["path"] == "/"
    assert client.get("/api/user", **https).status_code == 401


def test_the_cookie_for_another_sites_pages_is_partitioned(
    env: dict[str, str], request: pytest.FixtureRequest
) -> None:
    env |= {"SESSION_COOKIE_SECURE": "true", "SESSION_COOKIE_SAMESITE": "None"}
    client = request.getfixturevalue("client")
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}

    response = client.post("/api/register", json=body, base_url="https://api.example.com")

    [line] = response.headers.getlist("Set-Cookie")
    attributes = {part.strip().lower() for part in line.split(";")[1:]}
    assert {"samesite=none", "secure", "partitioned", "httponly", "path=/"} <= attributes


def test_on_plain_http_loopback_the_cookie_has_a_plain_name(client: FlaskClient) -> None:
    register(client)

    cookie = client.get_cookie("session")
    assert cookie is not None
    assert (cookie.http_only, cookie.secure, cookie.same_site) == (True, False, "Lax")


def test_strangers_get_neither_cookie_nor_key(client: FlaskClient, store: redis.Redis) -> None:
    for path in ("/api/session", "/api/spotify", "/api/user", "/api/openapi.json", "/api/nothing"):
        response = client.get(path)
        assert "Set-Cookie" not in response.headers
    assert store.keys("*") == []


# --- ids -----------------------------------------------------------------------------------------


def test_the_id_is_renewed_at_every_sign_in(client: FlaskClient, store: redis.Redis) -> None:
    first_visit(client)
    ids = [sid(client)]
    register(client, "ada")
    ids.append(sid(client))
    login(client, "ada")
    ids.append(sid(client))

    assert len(set(ids)) == 3
    assert len(session_keys(store)) == 1
    for old in ids[:2]:
        client.set_cookie("session", old)
        assert client.get("/api/session").json["authenticated"] is False


@pytest.mark.parametrize(
    "crafted", ["", "x", "A" * 43, "../../etc/passwd", "session:" + "A" * 35, "A" * 4_000, "ä" * 43]
)
def test_a_crafted_id_is_never_adopted(client: FlaskClient, store: redis.Redis, crafted: str) -> None:
    client.set_cookie("session", crafted)

    register(client)

    assert sid(client) != crafted
    assert len(session_keys(store)) == 1


def test_redis_does_not_know_the_id(client: FlaskClient, store: redis.Redis) -> None:
    register(client)

    dump = b"".join(key + (store.dump(key) or b"") for key in store.keys("*"))

    assert sid(client).encode() not in dump


def test_no_token_reaches_redis(client: FlaskClient, store: redis.Redis, sandbox: SandboxClient) -> None:
    register(client)
    connect(client, sandbox)
    token = client.get("/api/spotify/token").json["access_token"]

    dump = b"".join(key + (store.dump(key) or b"") for key in store.keys("*"))

    assert token.encode() not in dump


def test_a_visitors_id_that_was_planted_does_not_lead_to_the_connection(
    new_client: Callable[[], FlaskClient], store: redis.Redis, sandbox: SandboxClient
) -> None:
    attacker, victim = new_client(), new_client()
    first_visit(attacker)
    planted = sid(attacker)
    victim.set_cookie("session", planted)

    connect(victim, sandbox)

    assert sid(victim) != planted
    assert victim.get("/api/spotify").json["status"] == "connected"
    assert attacker.get("/api/spotify").json == {"status": "not_connected"}
    assert len(session_keys(store)) == 1


# --- what is in Redis is not trusted -------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"junk \xff\xfe",
        json.dumps({"user_id": 1, "created_at": 0}).encode(),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode(1),
        msgspec.msgpack.encode({"user_id": 1}),
        msgspec.msgpack.encode({"user_id": "1", "created_at": 1.0}),
        msgspec.msgpack.encode({"user_id": 1, "created_at": 1.0, "is_admin": True}),
        msgspec.msgpack.encode({"user_id": 1, "created_at": 4e9})[:-3],
        b"\x91" * 100_000,
        "pickle",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_data_that_is_not_ours_is_no_session(
    client: FlaskClient, store: redis.Redis, tmp_path: Path, planted: bytes | str
) -> None:
    register(client)
    [key] = session_keys(store)
    marker = tmp_path / "executed"
    store.set(key, pickle.dumps(Bomb(marker)) if planted == "pickle" else planted)

    response = client.get("/api/session")

    assert (response.status_code, response.json["authenticated"]) == (200, False)
    assert client.get("/api/user").status_code == 401
    assert not marker.exists()


# --- time ----------------------------------------------------------------------------------------


def test_reading_slides_the_idle_time_out(client: FlaskClient, store: redis.Redis) -> None:
    register(client)
    [key] = session_keys(store)
    week = 7 * 86_400
    assert week - 5 <= store.ttl(key) <= week
    store.expire(key, 100)

    client.get("/api/user")

    assert week - 5 <= store.ttl(key) <= week


def test_an_idle_session_ends(client: FlaskClient, store: redis.Redis) -> None:
    register(client)
    [key] = session_keys(store)
    store.pexpire(key, 1)
    eventually(lambda: not store.exists(key))

    assert client.get("/api/user").status_code == 401


def test_a_session_ends_after_its_longest_life_however_much_it_is_used(
    client: FlaskClient, store: redis.Redis
) -> None:
    register(client)
    [key] = session_keys(store)
    data = msgspec.msgpack.decode(store.get(key))
    now = clock.utc_now().timestamp()
    store.set(key, msgspec.msgpack.encode({**data, "created_at": now - 30 * 86_400 + 60}))
    assert client.get("/api/user").status_code == 200
    store.set(key, msgspec.msgpack.encode({**data, "created_at": now - 30 * 86_400 - 60}))

    assert client.get("/api/user").status_code == 401
    assert session_keys(store) == []


def test_signing_in_starts_the_longest_life_anew(client: FlaskClient, store: redis.Redis) -> None:
    register(client, "ada")
    [key] = session_keys(store)
    data = msgspec.msgpack.decode(store.get(key))
    store.set(key, msgspec.msgpack.encode({**data, "created_at": data["created_at"] - 86_400}))

    login(client, "ada")

    [key] = session_keys(store)
    assert msgspec.msgpack.decode(store.get(key))["created_at"] >= data["created_at"]


# --- ends are final ------------------------------------------------------------------------------


def test_a_slow_request_does_not_bring_a_signed_out_session_back(
    client: FlaskClient, app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    """The slow one even writes to the session when it ends: it has just connected Spotify."""
    register(client, "ada")
    callback = sandbox.consent(first_visit(client))
    slow = another_tab(client)
    old = sid(client)
    sandbox.fault(on="code", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(come_back, slow, callback)
        sandbox.wait_for_held(1)
        assert client.post("/api/logout").status_code == 204
        sandbox.release()
        connecting.result()

    assert session_keys(store) == []
    client.set_cookie("session", old)
    assert client.get("/api/session").json["authenticated"] is False


def test_a_visitor_who_leaves_while_connecting_has_left(
    client: FlaskClient, app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    callback = sandbox.consent(first_visit(client))
    slow = another_tab(client)
    sandbox.fault(on="code", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(come_back, slow, callback)
        sandbox.wait_for_held(1)
        client.post("/api/logout")
        sandbox.release()
        answer = connecting.result()

    assert session_keys(store) == []
    assert "Set-Cookie" not in answer.headers


def test_no_session_is_revived_in_two_hundred_races(
    new_client: Callable[[], FlaskClient], app: Flask, store: redis.Redis, sandbox: SandboxClient
) -> None:
    user_id = register(seed := new_client(), "ada")["id"]
    connect(seed, sandbox)
    revived = 0
    with ThreadPoolExecutor(4) as pool:
        for _ in range(200):
            client = new_client()
            with client.session_transaction() as session:
                session["user_id"] = user_id
            assert client.get("/api/session").json["authenticated"] is True
            tabs = [another_tab(client) for _ in range(4)]
            start = threading.Barrier(4)

            def act(number: int, tabs: list[FlaskClient] = tabs, start: threading.Barrier = start) -> None:
                start.wait()
                if number == 0:
                    tabs[0].post("/api/logout")
                else:  # writes the session: it had no link yet
                    tabs[number].get("/api/spotify/authorize")

            list(pool.map(act, range(4)))
            revived += bool(client.get("/api/session").json["authenticated"])
    assert revived == 0


def test_both_of_two_sessions_of_one_person_live_on_their_own(new_client: Callable[[], FlaskClient]) -> None:
    one, two = new_client(), new_client()
    register(one, "ada")
    login(two, "ada")

    one.post("/api/logout")

    assert one.get("/api/user").status_code == 401
    assert two.get("/api/user").status_code == 200
