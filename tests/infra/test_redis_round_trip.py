"""Several commands in one round trip to Redis."""

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from app.infra import redis_connection as redis_connection_module
from app.infra.redis_client import redis_client
from app.infra.redis_round_trip import round_trip
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import eventually, patient

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def store(redis_proxy: FaultProxy) -> Iterator[redis.Redis]:
    """A client that reaches Redis through a proxy."""
    client = patient(redis_client(f"redis://127.0.0.1:{redis_proxy.port}/0"))
    yield client
    client.close()


def test_replies_are_in_the_order_of_the_commands(store: redis.Redis) -> None:
    replies = round_trip(
        store, [("SET", "ä", b"\r\n\x00", "EX", 60), ("GET", "ä"), ("MGET", "ä", "{ä}"), ("STRLEN", "ä")]
    )

    assert replies.values == [b"OK", b"\r\n\x00", [b"\r\n\x00", None], 3]
    assert 0 < replies.connected_at <= time.monotonic()


def test_commands_are_sent_together(store: redis.Redis, redis_proxy: FaultProxy) -> None:
    round_trip(store, [("PING",)])
    before = redis_proxy.round_trips

    round_trip(store, [("GET", "a"), ("GET", "b"), ("GET", "c")])

    assert redis_proxy.round_trips - before == 1


def test_error_of_one_command_is_its_reply(store: redis.Redis) -> None:
    store.lpush("list", "value")

    first, second, third = round_trip(store, [("GET", "list"), ("SET", "a", 1), ("GET", "a")]).values

    assert isinstance(first, redis.ResponseError)
    assert (second, third) == (b"OK", b"1")


def test_connection_with_unread_replies_is_not_used_again(
    store: redis.Redis, redis_proxy: FaultProxy
) -> None:
    store.set("mine", "secret")
    opened_at = round_trip(store, [("PING",)]).connected_at
    redis_proxy.hold("down", b"secret")
    cast("Any", store.connection_pool)._available_connections[-1]._sock.settimeout(0.1)

    with pytest.raises(redis.TimeoutError):
        round_trip(store, [("GET", "mine"), ("GET", "mine")])
    redis_proxy.release()

    replies = round_trip(store, [("GET", "other")])
    assert replies.values == [None]
    assert replies.connected_at > opened_at


def test_connection_that_redis_has_closed_is_replaced(store: redis.Redis, redis_proxy: FaultProxy) -> None:
    opened_at = round_trip(store, [("PING",)]).connected_at
    redis_proxy.cut()
    wait_until_cold(store)

    assert round_trip(store, [("PING",)]).connected_at > opened_at


def test_connection_is_not_asked_whether_it_is_open_moments_after_its_use(
    store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection_module, "WARM_SECONDS", 60.0)
    opened_at = round_trip(store, [("PING",)]).connected_at
    pool = cast("Any", store.connection_pool)
    monkeypatch.setattr(pool, "get_connection", None)

    assert round_trip(store, [("PING",)]).connected_at == opened_at


def test_connection_is_replaced_if_another_one_has_failed_since_its_use(
    store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection_module, "WARM_SECONDS", 60.0)
    opened_at = round_trip(store, [("PING",)]).connected_at
    cast("Any", store.connection_pool)._available_connections[-1]._staleness.report_failure()

    assert round_trip(store, [("PING",)]).connected_at > opened_at


def wait_until_cold(store: redis.Redis) -> None:
    connection = cast("Any", store.connection_pool)._available_connections[-1]
    eventually(lambda: not connection.is_warm())


def test_unavailable_redis_is_an_error(store: redis.Redis, redis_proxy: FaultProxy) -> None:
    redis_proxy.refuse()

    with pytest.raises(redis.ConnectionError):
        round_trip(store, [("PING",)])
