"""How many round trips a call takes, and that a lead is released if the call is then not made."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, cast

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.errors import SpotifyRateLimited
from app.infra import redis_scripts
from app.infra.http_client import HttpResponse
from app.models import AccessToken, SpotifyUser
from app.spotify.clients import rate_limit
from app.spotify.clients.call import Call
from app.spotify.gateway.cache import State
from app.spotify.gateway.prepared_call import PreparedCall
from app.spotify.gateway.proxy import Gateway, GatewayBusy
from tests.helpers.cached_reads import (
    Store,
    StubTokens,
    gateway_on,
    get,
    immediate,
    read,
    stored_fields,
    write,
)
from tests.helpers.flows import another_tab, slug
from tests.helpers.round_trips import counting
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(GATEWAY_SHARE_SECONDS="60"),  # also on a slow machine, the second read is a hit
]

# A visitor's session and the version of its connection. Then the lookup, and the check of Spotify's limits.
FIRST = "GETEX GET EVALSHA EVALSHA"
# The response is stored, and the call is counted.
STORE_AND_COUNT = "EVALSHA EVALSHA"
CONNECTION = cast("Any", SpotifyUser(id=7, token=AccessToken(grant_id="grant")))


@pytest.fixture(autouse=True)
def _remembered(mira: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process read the session, its rows, and the scripts before a test counts.

    On a slow machine, it would check Spotify's limits again before the call.
    """
    monkeypatch.setattr(rate_limit, "CHECK_SECONDS", 600.0)
    assert get(mira, "me").status_code == get(mira, "me").status_code == 200


def test_hit_takes_one_round_trip(mira: FlaskClient, app: Flask) -> None:
    get(mira, "me/player")
    with counting(app) as made:
        response = get(mira, "me/player")
    assert (response.headers["X-Cache"], made.redis, made.sql) == ("hit", [FIRST], [])


def test_miss_takes_one_round_trip_before_the_call(mira: FlaskClient, app: Flask) -> None:
    with counting(app) as made:
        response = get(mira, "me/playlists")
    assert (response.headers["X-Cache"], made.redis, made.sql) == ("miss", [FIRST, STORE_AND_COUNT], [])


def test_write_takes_one_round_trip_before_the_call(mira: FlaskClient, app: Flask) -> None:
    with counting(app) as made:
        assert write(mira).status_code == 204
    assert (made.redis, made.sql) == (["GETEX GET UNLINK EVALSHA", "UNLINK EVALSHA"], [])


@pytest.mark.settings(GATEWAY_BUDGET="1000")
def test_budget_takes_one_more_round_trip(mira: FlaskClient, app: Flask) -> None:
    """It must not be spent on a read that turns out to be a hit, and other callers may spend it meanwhile."""
    with counting(app) as made:
        assert get(mira, "me/playlists").headers["X-Cache"] == "miss"
    assert (made.redis, made.sql) == ([FIRST, "EVALSHA", "EVALSHA"], [])


def test_each_call_is_counted_once(mira: FlaskClient, sandbox: SandboxClient, store: Store) -> None:
    store.delete(*store.keys("spotify-calls:*"))
    get(mira, "me/playlists")
    get(mira, "me/playlists")
    write(mira)
    assert calls_counted(store) == len(sandbox.calls(path="/v1/me/playlists")) + 1


def test_rejected_call_is_counted_before_the_limit_is_learned(
    mira: FlaskClient, sandbox: SandboxClient, store: Store
) -> None:
    store.delete(*store.keys("spotify-calls:*"))
    for number in range(9):
        get(mira, f"search?q={number}&type=track")
    sandbox.fault(on="api", kind="rate_limited", body="quota")
    assert get(mira, "search?q=more&type=track").status_code == 429
    [limit] = store.keys("spotify-budget:*")
    assert store.hget(limit, "limit") == b"8"  # four fifths of ten


def calls_counted(store: Store) -> int:
    [key] = [key for key in store.keys("spotify-calls:*") if key.endswith(b"}")]
    fields = store.hgetall(key)
    return sum(int(value.partition(b":")[2]) for name, value in fields.items() if name.isdigit())


# --- a lead that is not used -----------------------------------------------------------------------


def leaders(store: Store) -> list[bytes]:
    return [name for name in stored_fields(store) if name.startswith(b"leader:")]


def test_lead_is_released_if_the_connection_is_gone(
    mira: FlaskClient, another_worker: Flask, store: Store
) -> None:
    assert another_tab(mira, another_worker).delete("/api/spotify").status_code == 204
    response = get(mira, "me/playlists")
    assert (response.status_code, slug(response)) == (409, "spotify-not-connected")
    assert leaders(store) == []


def test_lead_is_released_if_it_was_taken_with_an_outdated_snapshot(
    mira: FlaskClient, app: Flask, store: Store
) -> None:
    """Otherwise, this caller would wait for itself until the lease expires."""
    store.delete(*store.keys("version:*"))
    with counting(app) as made:
        assert get(mira, "me/playlists").headers["X-Cache"] == "miss"
    release, again = "EVALSHA", "EVALSHA EVALSHA"
    assert [made.redis[0], *made.redis[-3:]] == [FIRST, release, again, STORE_AND_COUNT]
    assert len(made.redis) <= 5  # in between, a new version may be created


def test_lead_is_released_during_a_wait(mira: FlaskClient, app: Flask, store: Store) -> None:
    app.extensions["backline"].rate_limiter.block_all(HttpResponse(429, {"retry-after": "40"}, b""))
    with counting(app) as made:
        assert get(mira, "me/playlists").status_code == 429
    assert made.redis == [FIRST, "EVALSHA"]
    assert leaders(store) == []


@pytest.fixture
def gateway(app: Flask, redis_url: str) -> Gateway:
    """Return a gateway with eight slots and a queue of six."""
    return gateway_on(redis_url, app.extensions["backline"].config)


@pytest.fixture
def leading(gateway: Gateway) -> Iterator[PreparedCall]:
    """Return a read that leads, before it has a slot."""
    with gateway.prepare(Call("GET", "search")) as prepared:
        prepared.receive(redis_scripts.run(gateway._client, *prepared.commands_for(CONNECTION)))
        assert prepared.lookup.state is State.LEADING
        yield prepared


def test_lead_is_released_while_it_waits_for_a_slot(
    gateway: Gateway,
    app: Flask,
    redis_url: str,
    store: Store,
    leading: PreparedCall,
    pool: ThreadPoolExecutor,
) -> None:
    elsewhere = gateway_on(redis_url, app.extensions["backline"].config)
    with ExitStack() as slots:
        for caller in range(8):
            gateway._bulkhead.acquire(slots.enter_context(gateway._bulkhead.admit(caller)))
        waiting = pool.submit(gateway.forward, leading, CONNECTION)
        eventually(lambda: gateway._bulkhead._queued == 1)
        assert leaders(store) == []
        assert read(elsewhere, "search", immediate(b"found"), ttl=60).cache == "miss"
    assert (waiting.result().cache, waiting.result().spotify.body) == ("shared", b"found")


def test_lead_is_released_if_too_many_requests_wait(
    gateway: Gateway, leading: PreparedCall, store: Store
) -> None:
    with ExitStack() as threads:
        for _ in range(14):
            threads.enter_context(gateway._bulkhead.admit("another connection"))
        for admission in gateway._bulkhead._admissions:
            admission.has_slot = True  # none can be evicted
        with pytest.raises(GatewayBusy), leading:
            gateway.forward(leading, CONNECTION)
        for admission in gateway._bulkhead._admissions:
            admission.has_slot = False
    assert leaders(store) == []


def test_redis_is_not_asked_again_after_it_has_not_responded(gateway: Gateway, app: Flask) -> None:
    with counting(app) as made, gateway.prepare(Call("GET", "search")) as prepared:
        prepared.commands_for(CONNECTION)
        made.redis.clear()
    assert made.redis == []


def test_limits_are_checked_again_after_a_wait(
    gateway: Gateway, app: Flask, leading: PreparedCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process got a 429 while this caller waited for a token."""
    monkeypatch.setattr(rate_limit, "CHECK_SECONDS", 0.0)
    built = app.extensions["backline"]
    built.rate_limiter.block_all(HttpResponse(429, {"retry-after": "40"}, b""))
    gateway._web_api = built.web_api
    gateway._tokens = cast("Any", StubTokens())
    built.web_api._limits = gateway._limits
    with pytest.raises(SpotifyRateLimited):
        gateway.forward(leading, CONNECTION)
