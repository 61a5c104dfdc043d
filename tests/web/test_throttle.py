"""Password guessing is slowed down, and no one can be locked out (A5, A6)."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.auth.passwords import Passwords
from app.web.client_address import client_network
from script.server import EMBEDDED_REDIS
from tests.conftest import MakeApp
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD, register, slug
from tests.helpers.servers import free_port, process_environment, running_program

pytestmark = pytest.mark.sqlite_only


def attempt(
    client: FlaskClient, login: str, password: str = "not the password", *, ip: str = ""
) -> TestResponse:
    if ip:
        client.environ_base["REMOTE_ADDR"] = ip
    return client.post("/api/login", json={"login": login, "password": password})


def statuses(client: FlaskClient, login: str, times: int, **options: str) -> list[int]:
    return [attempt(client, login, **options).status_code for _ in range(times)]


@pytest.fixture
def store(app: Flask) -> redis.Redis:
    found: redis.Redis = app.extensions["backline"].redis
    return found


def end_waits(store: redis.Redis) -> None:
    """End all current waits. The counters stay. In tests, the first one is 200 s, not one second."""
    for key in store.keys("throttle:pair:*"):
        if store.hexists(key, "until"):
            store.hset(key, "until", 0)


@pytest.mark.requirement("L4")
@pytest.mark.requirement("A5")
@pytest.mark.parametrize("login", ["ada", "nobody"])
def test_ten_attempts_are_free_and_each_further_one_doubles_the_wait(
    new_client: Callable[[], FlaskClient], store: redis.Redis, login: str
) -> None:
    register(new_client(), "ada")
    client = new_client()
    assert statuses(client, login, 10) == [401] * 10

    for wait in (200, 400, 800, 900, 900):
        rejected = attempt(client, login)
        assert (rejected.status_code, slug(rejected)) == (429, "too-many-attempts")
        assert wait - 150 < int(rejected.headers["Retry-After"]) <= wait
        end_waits(store)
        assert attempt(client, login).status_code == 401


@pytest.mark.requirement("A5")
def test_no_password_is_checked_during_a_wait(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    register(client, "ada")
    assert statuses(client, "ada", 10) == [401] * 10
    monkeypatch.setattr(PasswordHasher, "verify", lambda *_: pytest.fail("a password was checked"))

    assert attempt(client, "ada", PASSWORD).status_code == 429


@pytest.mark.requirement("A5")
def test_concurrent_attempts_count_like_consecutive_ones(client: FlaskClient, app: Flask) -> None:
    register(client, "ada")
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: attempt(app.test_client(), "ada").status_code, range(100)))

    assert sorted(statuses) == [401] * 10 + [429] * 90


@pytest.mark.requirement("A5")
@pytest.mark.parametrize("addresses", [1, 50])
def test_attackers_cannot_lock_an_account(
    new_client: Callable[[], FlaskClient], app: Flask, addresses: int
) -> None:
    """After a hundred attempts, from one address or fifty, the right password works from another address."""
    register(new_client(), "ada")
    client = new_client()
    for number in range(100):
        attempt(client, "ada", ip=f"198.51.100.{number % addresses}")

    assert attempt(new_client(), "ada", PASSWORD, ip="203.0.113.7").status_code == 200


@pytest.mark.requirement("A5")
def test_account_under_attack_allows_one_attempt_per_address(
    new_client: Callable[[], FlaskClient], store: redis.Redis
) -> None:
    register(new_client(), "ada")
    client = new_client()
    for number in range(10):
        assert set(statuses(client, "ada", 10, ip=f"198.51.100.{number}")) == {401}

    assert statuses(client, "ada", 3, ip="198.51.100.77") == [401, 429, 429]
    assert attempt(client, "ada", PASSWORD, ip="203.0.113.7").status_code == 200  # which ends the wait
    assert statuses(client, "ada", 3, ip="198.51.100.78") == [401] * 3


@pytest.mark.requirement("A5")
def test_address_has_a_hundred_failures_an_hour_for_all_accounts(
    new_client: Callable[[], FlaskClient],
) -> None:
    register(new_client(), "ada")
    client = new_client()
    statuses = [attempt(client, f"person{number}").status_code for number in range(101)]

    rejected = attempt(client, "ada", PASSWORD)
    assert statuses == [401] * 100 + [429]
    assert (rejected.status_code, slug(rejected)) == (429, "too-many-attempts")
    assert 3000 < int(rejected.headers["Retry-After"]) <= 3600
    assert attempt(client, "ada", PASSWORD, ip="203.0.113.7").status_code == 200


@pytest.mark.requirement("A5")
def test_success_resets_the_account_counter_but_not_the_address_counter(
    client: FlaskClient, store: redis.Redis
) -> None:
    register(client, "ada")
    statuses(client, "ada", 9)
    assert attempt(client, "ada", PASSWORD).status_code == 200

    assert statuses(client, "ada", 10) == [401] * 10
    [address] = store.keys("throttle:address:*")
    assert int(store.get(address) or 0) == 19


@pytest.mark.requirement("A5")
def test_reset_uses_the_same_normal_form_as_counting(client: FlaskClient, store: redis.Redis) -> None:
    """An email address keeps its ß, because email for `ss` goes elsewhere. Attempts ignore the difference."""
    address = "ada@straße.example"
    client.post("/api/register", json={"username": "ada", "email": address, "password": PASSWORD})
    assert statuses(client, address, 11)[-1] == 429

    assert client.delete("/api/user", json={"password": PASSWORD}).status_code == 204

    assert store.keys("throttle:pair:*") == []
    assert attempt(client, address).status_code == 401


@pytest.mark.requirement("A5")
def test_counters_survive_a_restart(app: Flask, another_worker: Flask) -> None:
    register(app.test_client(), "ada")
    statuses(app.test_client(), "ada", 10)

    assert attempt(another_worker.test_client(), "ada").status_code == 429


@pytest.mark.requirement("A5")
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.10", False),
    ],
)
def test_addresses_of_one_household_count_as_one(app: Flask, one: str, other: str, same: bool) -> None:
    seen = []
    for address in (one, other):
        with app.test_request_context(environ_base={"REMOTE_ADDR": address}):
            seen.append(client_network())

    assert (seen[0] == seen[1]) is same


@pytest.mark.requirement("A6")
def test_no_password_is_checked_without_redis(
    redis_proxy: FaultProxy, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(app.test_client(), "ada")
    looked = []
    monkeypatch.setattr(PasswordHasher, "verify", lambda *_: looked.append(1))
    redis_proxy.refuse()
    redis_proxy.cut()

    responses = [attempt(app.test_client(), "ada", PASSWORD) for _ in range(50)]

    assert {(response.status_code, slug(response)) for response in responses} == {
        (503, "service-unavailable")
    }
    assert looked == []


def test_attempt_that_could_not_be_checked_is_not_counted(
    client: FlaskClient, store: redis.Redis, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(client, "ada")
    passwords: Passwords = app.extensions["backline"].passwords
    monkeypatch.setattr(passwords, "_slots", threading.BoundedSemaphore(1))
    monkeypatch.setattr(passwords, "MAX_WAIT_SECONDS", 0.01)

    with passwords.hashing_slot():
        assert statuses(client, "ada", 20) == [503] * 20

    assert statuses(client, "ada", 11) == [401] * 10 + [429]
    for _ in range(8):
        end_waits(store)
        assert attempt(client, "ada").status_code == 401
    end_waits(store)
    with passwords.hashing_slot():
        assert attempt(client, "ada", PASSWORD).status_code == 503
    assert attempt(client, "ada", PASSWORD).status_code == 200


def test_redis_keys_contain_neither_names_nor_addresses(client: FlaskClient, store: redis.Redis) -> None:
    register(client, "ada")
    attempt(client, "ada@example.com")

    keys = b" ".join(store.keys("throttle:*"))

    assert b"ada" not in keys
    assert b"127.0.0.1" not in keys


def test_address_can_register_a_hundred_accounts_an_hour(
    new_client: Callable[[], FlaskClient],
) -> None:
    for _ in range(100):
        register(new_client())
    body = {"username": "more", "email": "more@example.com", "password": PASSWORD}

    rejected = new_client().post("/api/register", json=body)
    (elsewhere := new_client()).environ_base["REMOTE_ADDR"] = "203.0.113.7"

    assert (rejected.status_code, slug(rejected)) == (429, "too-many-attempts")
    assert elsewhere.post("/api/register", json=body).status_code == 201


@pytest.mark.processes
def test_embedded_redis_counts_from_the_first_request_on(make_app: MakeApp) -> None:
    """It closes the connection after an error, such as that for a script that it does not know yet."""
    port = free_port()
    command = [sys.executable, "-c", EMBEDDED_REDIS, "127.0.0.1", str(port)]
    with (
        redis.Redis(port=port, protocol=2) as embedded,
        running_program(command, embedded.ping, env=process_environment({})),
    ):
        for number in range(5):
            embedded.script_flush()
            client = make_app(REDIS_URL=f"redis://127.0.0.1:{port}/0?protocol=2").test_client()
            assert attempt(client, f"nobody{number}").status_code == 401
