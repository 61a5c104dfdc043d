"""Leaders and waiters one by one, and what the cache stores of their responses."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from flask import Flask

from app.errors import SpotifyNotConnected, SpotifyUnavailable
from app.infra.http_client import HttpResponse
from app.resilience.bulkhead import Bulkhead
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.errors import RateLimited
from app.spotify.gateway import cache as cache_module
from app.spotify.gateway import leases, proxy
from app.spotify.gateway.cache import State
from app.spotify.gateway.proxy import Gateway
from config import Config
from script.server import EMBEDDED_REDIS
from tests.helpers.cached_reads import (
    Fetch,
    Store,
    expire,
    expire_leases,
    gateway_on,
    immediate,
    lead,
    milliseconds,
    read,
    set_fields,
    stored_fields,
    stored_times,
    unexpected_call,
)
from tests.helpers.servers import LONG, _process, _until_up, eventually, free_port, process_environment

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(THREADS="64"),  # slots for all the callers of a test
]

HASH, LEADERS, INDEX = "shared:{7}", "shared:{7}:leaders", "shared:{7}:index"


@pytest.fixture
def gateway(app: Flask) -> Gateway:
    found: Gateway = app.extensions["backline"].gateway
    return found


def test_leader_without_its_lease_overwrites_nothing(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused, and another caller has fetched a newer response in the meantime."""
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", LONG)
    late = Fetch(b"old")
    paused = pool.submit(read, gateway, "me", late, ttl=60)
    late.wait_until_started()
    expire_leases(store)
    assert read(gateway, "me", immediate(b"new"), ttl=60).cache == "miss"
    late.finish()

    assert paused.result(LONG).spotify.body == b"old"
    served = read(gateway, "me", unexpected_call, ttl=60)
    assert (served.cache, served.spotify.body) == ("hit", b"new")


def test_leader_without_its_lease_does_not_take_anothers(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    late, other = Fetch(b"old"), Fetch(b"new")
    paused = pool.submit(read, gateway, "me", late, ttl=0)
    late.wait_until_started()
    [leader] = [name for name in stored_fields(store) if name.startswith(b"leader:")]
    store.hset(HASH, leader, "another process")
    expire_leases(store)
    read_name = leader.partition(b":")[2]
    for _ in range(3):  # the late leader does not renew the lease
        threading.Event().wait(0.02)
        assert store.zscore(LEADERS, read_name) == 0
    taken = pool.submit(read, gateway, "me", other, ttl=0)
    other.wait_until_started()
    mine = store.hget(HASH, leader)
    late.finish()
    paused.result(LONG)
    assert store.hget(HASH, leader) == mine
    other.finish()
    assert taken.result(LONG).cache == "miss"


def test_leader_without_its_lease_does_not_release_anothers(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", LONG)
    late, other = Fetch(b"", raises=SpotifyNotConnected()), Fetch(b"new")
    paused = pool.submit(read, gateway, "me", late, ttl=60)
    late.wait_until_started()
    expire_leases(store)
    taken = pool.submit(read, gateway, "me", other, ttl=60)
    other.wait_until_started()
    late.finish()
    assert isinstance(paused.exception(LONG), SpotifyNotConnected)
    other.finish()
    assert taken.result(LONG).cache == "miss"
    assert read(gateway, "me", unexpected_call, ttl=60).spotify.body == b"new"


def test_leader_renews_its_lease(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    slow = Fetch(b"slow")
    calls = [pool.submit(read, gateway, "me", slow, ttl=60) for _ in range(2)]
    slow.wait_until_started()
    [(name, lease)] = store.zrange(LEADERS, 0, -1, withscores=True)
    eventually(lambda: store.zscore(LEADERS, name) > lease)
    slow.finish()
    assert sorted(one.result(LONG).cache for one in calls) == ["miss", "shared"]
    renewer = gateway._cache._leases
    assert renewer._held == set()
    eventually(lambda: not renewer._running)


def test_next_fetch_is_due_a_ttl_after_the_last_one_started(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor
) -> None:
    """Counted from its arrival, a slow Spotify would be called less often than once per TTL."""
    call, before = Fetch(b"slow"), milliseconds(store)
    reading = pool.submit(read, gateway, "me", call, ttl=60)
    call.wait_until_started()
    then = milliseconds(store)
    eventually(lambda: milliseconds(store) > then + 50)
    call.finish()
    reading.result(LONG)
    [following], [until] = stored_times(store, b"next:"), stored_times(store, b"until:")
    assert before <= following - 60_000 <= then
    assert until - 60_000 > then + 50


class Waiter:
    """Lets a waiting caller look again only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._paused, self._look = threading.Event(), threading.Event()
        monkeypatch.setattr(Bulkhead, "pause", self._pause)

    def _pause(self, *_: object) -> None:
        self._paused.set()
        assert self._look.wait(LONG)

    def wait_until_paused(self) -> None:
        assert self._paused.wait(LONG)

    def look(self) -> None:
        self._look.set()


def test_waiter_takes_any_response_since_its_first_lookup(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, a busy page starves it: at each lookup, another call is already in progress."""
    waiter, call = Waiter(monkeypatch), Fetch(b"first")
    leader = pool.submit(read, gateway, "me", call, ttl=0)
    call.wait_until_started()
    waiting = pool.submit(read, gateway, "me", unexpected_call, ttl=0)
    waiter.wait_until_paused()
    call.finish()
    assert leader.result(LONG).spotify.body == b"first"
    [arrived] = stored_times(store, b"at:")
    eventually(lambda: milliseconds(store) > arrived)  # a response from this millisecond would count too
    assert read(gateway, "me", immediate(b"second"), ttl=0).cache == "miss"
    waiter.look()

    served = waiting.result(LONG)
    assert (served.spotify.body, served.cache) == (b"first", "shared")


def test_waiter_gives_up_when_its_deadline_passes(
    gateway: Gateway, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if no caller is fetching the response anymore."""
    waiter, call = Waiter(monkeypatch), Fetch(b"", raises=SpotifyNotConnected())
    leader = pool.submit(read, gateway, "me", call, ttl=0)
    call.wait_until_started()
    waiting = pool.submit(read, gateway, "me", unexpected_call, ttl=0)
    waiter.wait_until_paused()
    call.finish()
    assert isinstance(leader.exception(LONG), SpotifyNotConnected)
    monkeypatch.setattr(proxy, "MIN_SECONDS", proxy.TOTAL_SECONDS)  # there is no longer time for a call
    waiter.look()

    assert isinstance(waiting.exception(LONG), SpotifyUnavailable)


def test_too_large_response_is_fetched_by_each_caller(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor
) -> None:
    large = b"x" * (cache_module.MAX_ENTRY_BYTES + 1)
    call = Fetch(large)
    calls = [pool.submit(read, gateway, "me", call, ttl=60) for _ in range(3)]
    call.wait_until_started()
    call.finish()

    assert {one.result(LONG).cache for one in calls} == {"miss"}
    assert read(gateway, "me", immediate(large), ttl=60).spotify.body == large
    assert sum(map(len, stored_fields(store).values())) < 200


def test_cache_limits_bytes_and_entries_of_a_connection(gateway: Gateway, store: Store) -> None:
    body = b"x" * (cache_module.MAX_TOTAL_BYTES // 20)
    for number in range(40):
        read(gateway, f"search?q={number}", immediate(body), ttl=60)
    assert sum(map(len, stored_fields(store).values())) < cache_module.MAX_TOTAL_BYTES + 10_000
    # The newest are kept.
    assert read(gateway, "search?q=39", unexpected_call, ttl=60).cache == "hit"
    assert read(gateway, "search?q=0", immediate(b""), ttl=60).cache == "miss"
    assert 0 < store.pttl(HASH) <= 2 * cache_module.GRACE_SECONDS * 1000

    for number in range(cache_module.MAX_ENTRIES + 50):
        read(gateway, f"me?{number}", immediate(b"small"), ttl=60)
    assert store.zcard(INDEX) == cache_module.MAX_ENTRIES
    assert store.hlen(HASH) == 4 * cache_module.MAX_ENTRIES + 1
    assert store.zcard(LEADERS) == 0
    kept = sum(len(value) for name, value in stored_fields(store).items() if name.startswith(b"entry:"))
    assert int(store.hget(HASH, "bytes")) == kept


def test_cache_removes_traces_of_leaders_that_gave_up(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor
) -> None:
    """Each read has a leader that gives up while another caller waits, and it is not read again."""
    for number in range(20):
        leader = cache_module.Read.of(7, f"search?q={number}")
        waiting = cache_module.Read.of(7, f"search?q={number}")
        assert lead(gateway._cache, leader).state is State.LEADING
        assert gateway._cache.get(waiting).state is State.IN_PROGRESS
        gateway._cache.release(leader)
    assert store.zcard(LEADERS) == 20
    expire_leases(store)
    for number in range(2):
        read(gateway, f"me?{number}", immediate(b"x"), ttl=60)
    assert [name for name in stored_fields(store) if name.startswith((b"waited:", b"leader:"))] == []
    assert store.zcard(LEADERS) == 0


def test_cache_costs_the_same_for_a_full_connection(gateway: Gateway, store: Store) -> None:
    """Measured in commands that the scripts execute, which the server reports."""

    def commands(target: str) -> int:
        before = store.info("stats")["total_commands_processed"]
        assert read(gateway, target, immediate(b"x"), ttl=60).cache == "miss"
        return int(store.info("stats")["total_commands_processed"]) - int(before)

    few = commands("me")
    for number in range(cache_module.MAX_ENTRIES):
        read(gateway, f"me?{number}", immediate(b"small"), ttl=60)
    # Threads in the background may execute commands meanwhile.
    assert min(commands(f"search?q={number}") for number in range(3)) <= few + 10  # one entry is evicted


@pytest.mark.parametrize("field", ["at", "until", "lease"])
def test_cache_ignores_times_too_far_ahead(gateway: Gateway, store: Store, field: str) -> None:
    """Redis failed over to a host whose clock is an hour behind."""
    hour = 3_600_000
    read(gateway, "me", immediate(b"old"), ttl=60)
    if field == "lease":
        store.flushall()
        assert lead(gateway._cache, cache_module.Read.of(7, "grant me ")).state is State.LEADING
        for name, lease in store.zrange(LEADERS, 0, -1, withscores=True):
            store.zadd(LEADERS, {name: lease + hour})
    else:
        set_fields(store, f"{field}:".encode(), stored_times(store, f"{field}:".encode())[0] + hour)
    assert read(gateway, "me", immediate(b"new"), ttl=60).spotify.body == b"new"
    assert read(gateway, "me", unexpected_call, ttl=60).spotify.body == b"new"


def test_unshareable_response_without_waiters_is_not_stored(gateway: Gateway, store: Store) -> None:
    read(gateway, "me", immediate(b"ada@example.com"), ttl=0)
    assert stored_fields(store) == {}


def test_expired_response_is_deleted_while_others_are_read(
    gateway: Gateway, store: Store, pool: ThreadPoolExecutor
) -> None:
    """A page that polls for hours keeps the key alive, but Spotify's terms limit how long data is stored."""
    call = Fetch(b"my playlists")
    calls = [pool.submit(read, gateway, "me/playlists", call, ttl=0) for _ in range(2)]
    eventually(lambda: [name for name in stored_fields(store) if name.startswith(b"waited:")])
    call.finish()
    assert {one.result(LONG).spotify.body for one in calls} == {b"my playlists"}
    assert b"my playlists" in b"".join(stored_fields(store).values())
    for name in store.zrange(INDEX, 0, -1):
        store.zadd(INDEX, {name: 0})
    read(gateway, "me/player", immediate(b"a song"), ttl=60)

    kept = b"".join(stored_fields(store).values())
    assert b"my playlists" not in kept
    assert b"a song" in kept


def test_caller_that_waits_for_a_slot_does_not_lead(
    gateway: Gateway, app: Flask, redis_url: str, store: Store, pool: ThreadPoolExecutor
) -> None:
    """Otherwise, no caller could fetch it while its waiters have all the slots."""
    elsewhere = gateway_on(redis_url, app.extensions["backline"].config)
    with ExitStack() as all_places:
        for _ in range(16):
            gateway._bulkhead.acquire(all_places.enter_context(gateway._bulkhead.admit(7)))
        waiting = pool.submit(read, gateway, "me", unexpected_call, ttl=60)
        eventually(lambda: any(admission.wants_slot for admission in gateway._bulkhead._admissions))
        assert store.hgetall(HASH) == {}  # there is no leader
        assert read(elsewhere, "me", immediate(b"found"), ttl=60).cache == "miss"
    assert waiting.result(LONG).spotify.body == b"found"


def test_waiter_gets_a_response_from_after_a_write(gateway: Gateway, pool: ThreadPoolExecutor) -> None:
    old = Fetch(b"old")
    before = pool.submit(read, gateway, "me", old, ttl=60)
    old.wait_until_started()
    waiting = pool.submit(read, gateway, "me", immediate(b"new"), ttl=60)
    eventually(lambda: len(gateway._bulkhead._admissions) == 2)
    gateway._cache.drop(7)
    assert waiting.result(LONG).spotify.body == b"new"
    old.finish()
    assert before.result(LONG).spotify.body == b"old"
    assert read(gateway, "me", unexpected_call, ttl=60).spotify.body == b"new"


@pytest.mark.parametrize("spoilt", ["index gone", "index of another type"])
def test_cache_repairs_itself(gateway: Gateway, store: Store, spoilt: str) -> None:
    """At the next read of another response, for example after Redis has evicted a key."""
    read(gateway, "me", immediate(b"old"), ttl=60)
    if spoilt == "index of another type":
        store.set(INDEX, "junk")
    else:
        store.delete(INDEX)
        store.hset(HASH, "bytes", 4 * 1024 * 1024)

    read(gateway, "search?q=a", immediate(b"first"), ttl=60)
    read(gateway, "search?q=a", immediate(b"second"), ttl=60)

    assert read(gateway, "search?q=a", unexpected_call, ttl=60).cache == "hit"


@pytest.mark.processes
def test_embedded_redis_supports_the_cache_and_the_rate_limiter(
    env: dict[str, str], tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    command = [sys.executable, "-c", EMBEDDED_REDIS, "127.0.0.1", str(port)]
    with (
        _process(command, tmp_path / "log", env=process_environment({})) as process,
        redis.Redis(port=port, protocol=2) as embedded,
    ):
        _until_up(process, embedded.ping, tmp_path / "log")
        monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
        config = Config.from_env({**env, "GATEWAY_BUDGET": "5"})
        gateway, call = gateway_on(f"redis://127.0.0.1:{port}?protocol=2", config), Fetch(b"first")
        calls = [pool.submit(read, gateway, "me", call, ttl=60) for _ in range(3)]
        call.wait_until_started()
        eventually(lambda: len(gateway._bulkhead._admissions) == 3)
        [(leader, lease)] = embedded.zrange(LEADERS, 0, -1, withscores=True)
        eventually(lambda: embedded.zscore(LEADERS, leader) > lease)
        call.finish()
        assert sorted(one.result(LONG).cache for one in calls) == ["miss", "shared", "shared"]
        assert read(gateway, "me", unexpected_call, ttl=60).cache == "hit"
        expire(embedded, "next")
        ahead = Fetch(b"second")
        fetching = pool.submit(read, gateway, "me", ahead, ttl=60)
        ahead.wait_until_started()
        assert read(gateway, "me", unexpected_call, ttl=60).spotify.body == b"first"
        ahead.finish()
        fetching.result(LONG)
        assert read(gateway, "me", unexpected_call, ttl=60).spotify.body == b"second"
        gateway._cache.drop(7)
        assert read(gateway, "me", immediate(b"third"), ttl=0).cache == "miss"
        assert embedded.hkeys(HASH) == []  # no caller waited for it

        embedded.flushall()
        limiter = gateway._limits.deployment.rate_limiter
        for _ in range(4):
            limiter.acquire(None, is_poll=True)
        with pytest.raises(RateLimited) as over_budget:
            limiter.acquire(None, is_poll=True)
        assert 0 < (over_budget.value.retry_after or 0) <= 30
        limiter.acquire(None, is_poll=False)
        assert limiter.block_all(HttpResponse(429, {"retry-after": "100"}, b"")) == 100
        assert 40 < ClientLimitsRegistry(gateway._client, config).deployment.rate_limiter.retry_after() <= 100
