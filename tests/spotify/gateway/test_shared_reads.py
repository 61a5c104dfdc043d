"""What many ask for is one call, and nobody gets what is not theirs, or is of before a write."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.errors import SpotifyNotConnected
from app.infra.database import reading
from app.infra.http_client import HttpResponse
from app.models import AccessToken, SpotifyUser
from app.resilience.bulkhead import Bulkhead
from app.spotify.clients.call import Call
from app.spotify.clients.errors import RateLimited
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from app.spotify.gateway import cache as cache_module
from app.spotify.gateway import leases
from app.spotify.gateway import proxy as gateway
from app.spotify.gateway.cache import ResponseCache, State
from app.spotify.gateway.proxy import Gateway, GatewayResponse
from app.spotify.tokens.refresh import GrantEnded
from app.spotify.tokens.service import TokenService
from config import Config
from script.server import EMBEDDED_REDIS
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD, another_tab, connect, login, register, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server, _process, _until_up, eventually, free_port, process_environment
from tests.helpers.upstream import Upstream

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(THREADS="64"),  # places for all the callers of a test
]

PLAYER, V1 = "me/player", "/api/spotify/v1"
LONG = 30.0
HASH, LEADERS, INDEX = "shared:{7}", "shared:{7}:leaders", "shared:{7}:index"
StartServer = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as direct:
        yield direct


@pytest.fixture
def mira(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """Somebody whose Spotify is connected."""
    connect(client, sandbox)
    return client


@pytest.fixture
def jonas(new_client: Callable[[], FlaskClient], sandbox: SandboxClient) -> FlaskClient:
    """Somebody else."""
    other = new_client()
    connect(other, sandbox, person=another_person(sandbox))
    return other


@pytest.fixture
def pool(sandbox: SandboxClient) -> Iterator[ThreadPoolExecutor]:
    """Threads to call from at the same time. In the end nothing holds them any more."""
    with ThreadPoolExecutor(32) as pool:
        yield pool
        sandbox.clear_faults()


def another_person(sandbox: SandboxClient) -> str:
    return next(str(person["id"]) for person in sandbox.people() if person["id"] != "mira_t_42")


def get(tab: FlaskClient, path: str = PLAYER) -> TestResponse:
    return tab.get(f"{V1}/{path}")


def ask(
    pool: ThreadPoolExecutor, who: FlaskClient, path: str = PLAYER, worker: Flask | None = None
) -> "Future[TestResponse]":
    """Call from a tab of its own, at the same time as others."""
    return pool.submit(get, another_tab(who, worker), path)


def inside(app: Flask) -> int:
    """How many of this process's callers ask Spotify, or wait for one who does."""
    return len(app.extensions["backline"].gateway._bulkhead._admissions)


def cache(answer: TestResponse) -> str:
    assert answer.status_code in (200, 204), answer.text
    return answer.headers["X-Cache"]


def caches(answers: list["Future[TestResponse]"]) -> list[str]:
    return sorted(cache(answer.result(LONG)) for answer in answers)


def player_calls(sandbox: SandboxClient) -> int:
    return len(sandbox.calls(path="/v1/me/player"))


def set_times(store: redis.Redis, what: str) -> None:
    """Let a moment of all shared answers be long over: `until` they are served, for example."""
    set_to(store, what.encode(), 0)


def end_leases(store: redis.Redis) -> None:
    """Let every leader be one that has not been heard of for long."""
    for key in store.keys("shared:*:leaders"):
        for read in store.zrange(key, 0, -1):
            store.zadd(key, {read: 0})


def hashes(store: redis.Redis) -> list[bytes]:
    return [key for key in store.keys("shared:*") if key.endswith(b"}")]


def shared(store: redis.Redis) -> dict[bytes, bytes]:
    """All that Redis holds of what Spotify said: the fields of the hashes."""
    found: dict[bytes, bytes] = {}
    for key in hashes(store):
        found |= store.hgetall(key)
    return found


# One call for all who ask at the same time


def test_simultaneous_reads_become_one_call(
    mira: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.fault(on="player", kind="park")
    asked = [ask(pool, mira, worker=worker) for worker in (app, another_worker) for _ in range(8)]
    eventually(lambda: inside(app) == inside(another_worker) == 8)
    sandbox.release()

    answers = [one.result(LONG) for one in asked]
    assert caches(asked) == ["miss"] + ["shared"] * 15
    assert len({(answer.status_code, answer.data, answer.content_type) for answer in answers}) == 1
    assert player_calls(sandbox) == 1


@pytest.mark.processes
def test_simultaneous_reads_become_one_call_for_gunicorns_workers(
    mira: FlaskClient, server: StartServer, sandbox: SandboxClient
) -> None:
    sandbox.fault(on="player", kind="slow", seconds=0.2, times=None)
    # So many threads that one worker alone has a place for each of the callers, whomever they happen to meet.
    with server(workers=2, threads=128, THREADS="128", GATEWAY_SHARE_SECONDS="20") as api:

        def over_http(_: int) -> requests.Response:
            return requests.get(f"{api.url}{V1}/{PLAYER}", headers=as_http(mira), timeout=LONG)

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(over_http, range(24)))

    assert {answer.status_code for answer in answers} <= {200, 204}
    assert len({answer.content for answer in answers}) == 1
    assert sorted(answer.headers["X-Cache"] for answer in answers).count("miss") == 1
    assert player_calls(sandbox) == 1


def as_http(who: FlaskClient) -> dict[str, str]:
    """The headers by which another process takes a caller for this one."""
    cookie = who.get_cookie("backline_session")
    assert cookie is not None
    return {"X-Requested-With": "test", "Cookie": f"backline_session={cookie.value}"}


def test_reads_of_other_paths_or_people_are_not_shared(
    mira: FlaskClient, jonas: FlaskClient, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.clear_calls()
    sandbox.fault(on="api", kind="park", times=None)
    paths = ["me", "me?x=1", "me?x=2", "me/player/devices"]
    asked = [(who, path, ask(pool, who, path)) for who in (mira, jonas) for path in paths]
    sandbox.wait_for_held(8)
    sandbox.clear_faults()

    assert {cache(one.result(LONG)) for _, _, one in asked} == {"miss"}
    whose = {path: [one.result(LONG).json["id"] for _, at, one in asked if at == path] for path in paths[:3]}
    assert set(map(tuple, whose.values())) == {("mira_t_42", another_person(sandbox))}
    for who, person in ((mira, "mira_t_42"), (jonas, another_person(sandbox))):
        assert get(who, "me").json["id"] == person
    assert len(sandbox.calls()) == 10


# Failures


def test_failure_is_shared_with_waiters_but_not_with_later_callers(
    mira: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.fault(on="player", kind="timeout")  # the call, and its second try
    sandbox.fault(on="player", kind="close")
    asked = [ask(pool, mira) for _ in range(6)]
    eventually(lambda: inside(app) == 6 and sandbox.held() == 1)
    sandbox.release()

    refusals = [one.result(LONG) for one in asked]
    assert {(answer.status_code, slug(answer)) for answer in refusals} == {(503, "spotify-unavailable")}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refusals)
    assert player_calls(sandbox) == 2
    assert cache(get(mira)) == "miss"


def test_error_response_is_shared_unchanged(
    mira: FlaskClient, app: Flask, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    upstream.status, upstream.body = 503, b"upstream connect error"
    upstream.headers = {"Content-Type": "text/plain", "Retry-After": "7"}
    upstream.hold()
    asked = [ask(pool, mira, "me/playlists") for _ in range(6)]
    eventually(lambda: inside(app) == 6)
    upstream.release()

    for one in asked:
        answer = one.result(LONG)
        assert (answer.status_code, answer.data) == (503, b"upstream connect error")
        assert (answer.content_type, answer.headers["Retry-After"]) == ("text/plain", "7")
    assert [call.name for call in upstream.calls] == ["GET me/playlists"]
    upstream.status, upstream.headers, upstream.body = 200, {}, None
    assert get(mira, "me/playlists").json == {"call": 2}


def test_ended_grant_is_reported_to_each_caller_separately(
    mira: FlaskClient,
    new_client: Callable[[], FlaskClient],
    app: Flask,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each browser is sent to a consent of its own: an `authorize_url` is good for one session."""
    login(elsewhere := new_client(), register(mira)["username"])  # as the same person
    let_go = threading.Event()

    def ended(*_: object, **__: object) -> None:
        assert let_go.wait(LONG)
        raise GrantEnded

    monkeypatch.setattr(TokenService, "access_token_for", ended)
    asked = [ask(pool, who) for who in (mira, elsewhere) for _ in range(3)]
    eventually(lambda: inside(app) == 6)
    let_go.set()

    answers = [one.result(LONG) for one in asked]
    assert {slug(answer) for answer in answers} == {"spotify-reauthorization-required"}
    urls = [answer.json["authorize_url"] for answer in answers]
    assert set(urls[:3]).isdisjoint(urls[3:])


def test_missing_connection_is_not_shared_with_waiters(
    mira: FlaskClient, app: Flask, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, first = threading.Event(), threading.Lock()
    access_token_for = TokenService.access_token_for

    def once_gone(*arguments: Any, **options: Any) -> Any:
        if first.acquire(blocking=False):
            assert let_go.wait(LONG)
            raise SpotifyNotConnected
        return access_token_for(*arguments, **options)

    monkeypatch.setattr(TokenService, "access_token_for", once_gone)
    asked = [ask(pool, mira) for _ in range(4)]
    eventually(lambda: inside(app) == 4)
    let_go.set()

    statuses = sorted(one.result(LONG).status_code for one in asked)
    assert statuses[3] == 409
    assert max(statuses[:3]) <= 204


def test_wait_that_starts_during_a_call_does_not_affect_its_waiters(
    mira: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.fault(on="player", kind="park")
    sandbox.fault(on="player", kind="rate_limited", retry_after=40, times=None)
    asked = [ask(pool, mira) for _ in range(3)]
    eventually(lambda: inside(app) == 3 and sandbox.held() == 1)
    app.extensions["backline"].rate_limiter.block_all(HttpResponse(429, {"retry-after": "40"}, b""))
    sandbox.release()

    assert caches(asked) == ["miss", "shared", "shared"]  # it was under way
    set_times(app.extensions["backline"].redis, "until")
    refused = get(mira)
    assert (refused.status_code, slug(refused)) == (429, "spotify-rate-limited")


# Leaders who stumble


@pytest.mark.processes
def test_waiter_takes_over_from_a_killed_leader(
    mira: FlaskClient, app: Flask, server: StartServer, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    with server(workers=1) as api:
        sandbox.fault(on="player", kind="park")
        lost = pool.submit(requests.get, f"{api.url}{V1}/{PLAYER}", headers=as_http(mira), timeout=LONG)
        sandbox.wait_for_held(1)
        asked = [ask(pool, mira) for _ in range(5)]
        eventually(lambda: inside(app) == 5)
        assert player_calls(sandbox) == 1
        api.kill_worker()

        answers = [one.result(cache_module.LEASE_SECONDS + 5) for one in asked]

    assert isinstance(lost.exception(LONG), requests.ConnectionError)
    assert caches(asked) == ["miss"] + ["shared"] * 4
    assert {answer.status_code for answer in answers} <= {200, 204}
    assert player_calls(sandbox) == 2


def test_slow_leader_renews_its_lease(
    mira: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    seconds = cache_module.LEASE_SECONDS + 1
    sandbox.fault(on="player", kind="slow", seconds=seconds)
    asked = [ask(pool, mira) for _ in range(4)]
    assert caches(asked) == ["miss"] + ["shared"] * 3
    assert player_calls(sandbox) == 1


def test_lease_renewal_ends_with_the_last_call(mira: FlaskClient, app: Flask) -> None:
    get(mira)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "leases"])
    assert app.extensions["backline"].response_cache._leases._held == set()


# One by one: a leader who does as the test says


class Fetch:
    """A call to Spotify that is answered when the test says so."""

    def __init__(self, body: bytes, *, raises: Exception | None = None) -> None:
        self._answer = HttpResponse(200, {}, body)
        self._raises = raises
        self._began, self._answered = threading.Event(), threading.Event()

    def __call__(self) -> HttpResponse:
        self._began.set()
        assert self._answered.wait(LONG)
        if self._raises is not None:
            raise self._raises
        return self._answer

    def wait_until_asked(self) -> None:
        assert self._began.wait(LONG)

    def answer(self) -> "Fetch":
        self._answered.set()
        return self


def must_not_call() -> HttpResponse:
    raise AssertionError("one call too many")


for_a_minute, for_nobody_else = 60, 0


class StubTokens:
    """Gives every connection a token."""

    def access_token_for(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(access_token="token")


class StubWebApi:
    """Responds with what a function returns, to be cached for `ttl` seconds."""

    def __init__(self, fetch: Callable[[], HttpResponse], ttl: int) -> None:
        self._fetch, self._ttl = fetch, ttl

    def send(self, *_: object, **__: object) -> HttpResponse:
        return replace(self._fetch(), headers={"cache-control": f"max-age={self._ttl}"})


@pytest.fixture
def answers(app: Flask) -> Gateway:
    found: Gateway = app.extensions["backline"].gateway
    return found


def read(answers: Gateway, target: str, fetch: Callable[[], HttpResponse], ttl: int) -> GatewayResponse:
    """Read through the cache and bulkhead of a gateway, over a connection of the test's own."""
    tokens, web_api = cast("Any", StubTokens()), cast("Any", StubWebApi(fetch, ttl))
    one = Gateway(tokens, web_api, answers._cache, answers._bulkhead, poll_ttl=ttl)
    connection = SpotifyUser(id=7, token=AccessToken(grant_id="grant"))
    return one.forward(connection, Call("GET", target))


def gateway_on(store: redis.Redis) -> Gateway:
    """Return another process's gateway."""
    nothing = cast("Any", None)
    return Gateway(nothing, nothing, ResponseCache(store), Bulkhead(8, 6), poll_ttl=0)


def now(body: bytes) -> Fetch:
    return Fetch(body).answer()


def test_leader_without_its_lease_overwrites_nothing(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused for too long: another one has asked again meanwhile, and knows better."""
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", LONG)
    late = Fetch(b"old")
    paused = pool.submit(read, answers, "me", late, for_a_minute)
    late.wait_until_asked()
    end_leases(store)
    assert read(answers, "me", now(b"new"), for_a_minute).cache == "miss"
    late.answer()

    assert paused.result(LONG).spotify.body == b"old"
    served = read(answers, "me", must_not_call, for_a_minute)
    assert (served.cache, served.spotify.body) == ("hit", b"new")


def test_leader_without_its_lease_does_not_take_anothers(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    late, other = Fetch(b"old"), Fetch(b"new")
    paused = pool.submit(read, answers, "me", late, for_nobody_else)
    late.wait_until_asked()
    [leader] = [name for name in shared(store) if name.startswith(b"leader:")]
    store.hset(HASH, leader, "another process")
    end_leases(store)
    read_name = leader.partition(b":")[2]
    for _ in range(3):  # no beat of the late one's makes the lease longer
        threading.Event().wait(0.02)
        assert store.zscore(LEADERS, read_name) == 0
    taken = pool.submit(read, answers, "me", other, for_nobody_else)
    other.wait_until_asked()
    mine = store.hget(HASH, leader)
    late.answer()
    paused.result(LONG)
    assert store.hget(HASH, leader) == mine
    other.answer()
    assert taken.result(LONG).cache == "miss"


def test_leader_without_its_lease_does_not_release_anothers(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", LONG)
    late, other = Fetch(b"", raises=SpotifyNotConnected()), Fetch(b"new")
    paused = pool.submit(read, answers, "me", late, for_a_minute)
    late.wait_until_asked()
    end_leases(store)
    taken = pool.submit(read, answers, "me", other, for_a_minute)
    other.wait_until_asked()
    late.answer()
    assert isinstance(paused.exception(LONG), SpotifyNotConnected)
    other.answer()
    assert taken.result(LONG).cache == "miss"
    assert read(answers, "me", must_not_call, for_a_minute).spotify.body == b"new"


def test_next_fetch_is_due_a_ttl_after_the_last_one_started(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    """Not after it came, or a slow Spotify would be asked less often than once in that time."""
    call, before = Fetch(b"slow"), milliseconds(store)
    asked = pool.submit(read, answers, "me", call, for_a_minute)
    call.wait_until_asked()
    then = milliseconds(store)
    eventually(lambda: milliseconds(store) > then + 50)
    call.answer()
    asked.result(LONG)
    [following], [until] = times(store, b"next:"), times(store, b"until:")
    assert before <= following - 60_000 <= then
    assert until - 60_000 > then + 50


def milliseconds(store: redis.Redis) -> int:
    seconds, micro = store.time()
    return int(seconds * 1000 + micro // 1000)


class Waiter:
    """One who waits for another's call, and looks again when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asleep, self._look = threading.Event(), threading.Event()
        monkeypatch.setattr(Bulkhead, "pause", self._pause)

    def _pause(self, *_: object) -> None:
        self._asleep.set()
        assert self._look.wait(LONG)

    def wait_until_asleep(self) -> None:
        assert self._asleep.wait(LONG)

    def look(self) -> None:
        self._look.set()


def test_waiter_takes_any_response_since_its_first_lookup(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a busy page starves them: at each look another one asks, and the answer is never theirs."""
    waiter, call = Waiter(monkeypatch), Fetch(b"first")
    leader = pool.submit(read, answers, "me", call, for_nobody_else)
    call.wait_until_asked()
    waiting = pool.submit(read, answers, "me", must_not_call, for_nobody_else)
    waiter.wait_until_asleep()
    call.answer()
    assert leader.result(LONG).spotify.body == b"first"
    [arrived] = times(store, b"at:")
    eventually(lambda: milliseconds(store) > arrived)  # a response of this millisecond would do
    assert read(answers, "me", now(b"second"), for_nobody_else).cache == "miss"
    waiter.look()

    served = waiting.result(LONG)
    assert (served.spotify.body, served.cache) == (b"first", "shared")


def test_too_large_response_is_fetched_by_each_caller(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    large = b"x" * (cache_module.MAX_ENTRY_BYTES + 1)
    call = Fetch(large)
    asked = [pool.submit(read, answers, "me", call, for_a_minute) for _ in range(3)]
    call.wait_until_asked()
    call.answer()

    assert {one.result(LONG).cache for one in asked} == {"miss"}
    assert read(answers, "me", now(large), for_a_minute).spotify.body == large
    assert sum(map(len, shared(store).values())) < 200


def test_cache_limits_bytes_and_entries_of_a_connection(answers: Gateway, store: redis.Redis) -> None:
    body = b"x" * (cache_module.MAX_TOTAL_BYTES // 20)
    for number in range(40):
        read(answers, f"search?q={number}", now(body), for_a_minute)
    assert sum(map(len, shared(store).values())) < cache_module.MAX_TOTAL_BYTES + 10_000
    # The newest are kept.
    assert read(answers, "search?q=39", must_not_call, for_a_minute).cache == "hit"
    assert read(answers, "search?q=0", now(b""), for_a_minute).cache == "miss"
    assert 0 < store.pttl(HASH) <= 60_000

    for number in range(cache_module.MAX_ENTRIES + 50):
        read(answers, f"me?{number}", now(b"small"), for_a_minute)
    assert store.zcard(INDEX) == cache_module.MAX_ENTRIES
    assert store.hlen(HASH) == 4 * cache_module.MAX_ENTRIES + 1
    assert store.zcard(LEADERS) == 0
    kept = sum(len(value) for name, value in shared(store).items() if name.startswith(b"entry:"))
    assert int(store.hget(HASH, "bytes")) == kept


def test_cache_removes_traces_of_leaders_that_gave_up(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    """Each read has a leader that gives up while another caller waits, and then nobody asks for it again."""
    for number in range(20):
        leader = cache_module.Read.of(7, f"search?q={number}")
        waiting = cache_module.Read.of(7, f"search?q={number}")
        assert answers._cache.lead(leader, 0).state is State.LEADING
        assert answers._cache.get(waiting).state is State.LED
        answers._cache.release(leader)
    assert store.zcard(LEADERS) == 20
    end_leases(store)
    for number in range(2):
        read(answers, f"me?{number}", now(b"x"), for_a_minute)
    assert [name for name in shared(store) if name.startswith((b"waited:", b"leader:"))] == []
    assert store.zcard(LEADERS) == 0


def test_cache_costs_the_same_for_a_full_connection(answers: Gateway, store: redis.Redis) -> None:
    """Counted in commands of the scripts, which the server reports."""

    def commands(target: str) -> int:
        before = store.info("stats")["total_commands_processed"]
        assert read(answers, target, now(b"x"), for_a_minute).cache == "miss"
        return int(store.info("stats")["total_commands_processed"]) - int(before)

    few = commands("me")
    for number in range(cache_module.MAX_ENTRIES):
        read(answers, f"me?{number}", now(b"small"), for_a_minute)
    assert commands("search?q=a") <= few + 10  # one entry makes room


@pytest.mark.parametrize("field", ["at", "until", "lease"])
def test_cache_ignores_times_too_far_ahead(answers: Gateway, store: redis.Redis, field: str) -> None:
    """Redis failed over to a host whose clock is an hour behind."""
    hour = 3_600_000
    read(answers, "me", now(b"old"), for_a_minute)
    if field == "lease":
        store.flushall()
        assert answers._cache.lead(cache_module.Read.of(7, "grant me "), 0).state is State.LEADING
        for name, lease in store.zrange(LEADERS, 0, -1, withscores=True):
            store.zadd(LEADERS, {name: lease + hour})
    else:
        set_to(store, f"{field}:".encode(), times(store, f"{field}:".encode())[0] + hour)
    assert read(answers, "me", now(b"new"), for_a_minute).spotify.body == b"new"
    assert read(answers, "me", must_not_call, for_a_minute).spotify.body == b"new"


def test_unshareable_response_without_waiters_is_not_stored(answers: Gateway, store: redis.Redis) -> None:
    read(answers, "me", now(b"ada@example.com"), for_nobody_else)
    assert shared(store) == {}


def test_expired_response_is_deleted_while_others_are_read(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    """A page that polls for hours keeps the key alive, and Spotify's terms want nothing stored for long."""
    call = Fetch(b"my playlists")
    asked = [pool.submit(read, answers, "me/playlists", call, for_nobody_else) for _ in range(2)]
    eventually(lambda: [name for name in shared(store) if name.startswith(b"waited:")])
    call.answer()
    assert {one.result(LONG).spotify.body for one in asked} == {b"my playlists"}
    assert b"my playlists" in b"".join(shared(store).values())
    for name in store.zrange(INDEX, 0, -1):
        store.zadd(INDEX, {name: 0})
    read(answers, "me/player", now(b"a song"), for_a_minute)

    kept = b"".join(shared(store).values())
    assert b"my playlists" not in kept
    assert b"a song" in kept


# How long an answer is good


def test_read_is_shared_as_long_as_spotify_allows(
    mira: FlaskClient, upstream: Upstream, store: redis.Redis
) -> None:
    allowed = ["max-age=60", "private, max-age=60", "public, max-age=99999999999"]
    forbidden = ["private, max-age=0", "no-store, max-age=60", "no-cache, max-age=60"]
    senseless = ["max-age=-5", "max-age=soon", "max-age", '=;,"', ""]
    for number, control in enumerate(allowed + forbidden + senseless):
        upstream.headers, path = {"Cache-Control": control}, f"search?q={number}"
        answers = [get(mira, path) for _ in range(2)]
        assert [cache(answer) for answer in answers] == ["miss", "hit" if control in allowed else "miss"], (
            control
        )
        assert (answers[0].data == answers[1].data) == (control in allowed)
        assert answers[1].headers["Cache-Control"] == "no-store"
    assert 0 < store.pttl(hashes(store)[0]) <= 300_000
    assert max(times(store, b"until:")) <= max(times(store, b"at:")) + 300_000
    set_times(store, "until")
    assert {cache(get(mira, f"search?q={number}")) for number in range(3)} == {"miss"}


def test_read_with_another_status_than_200_is_not_shared(mira: FlaskClient, upstream: Upstream) -> None:
    upstream.headers, upstream.body = {"Cache-Control": "max-age=60", "Retry-After": "1"}, b""
    for upstream.status in (201, 202, 204, 304, 400, 401, 403, 404, 500):
        for _ in range(2):
            answer = get(mira, "search?q=a")
            assert (answer.status_code, answer.headers["X-Cache"]) == (upstream.status, "miss")


def test_missing_permission_is_not_shared(mira: FlaskClient, upstream: Upstream) -> None:
    upstream.body = b""
    for upstream.status in (401, 403):
        assert [get(mira).headers["X-Cache"] for _ in range(2)] == ["miss", "miss"]


def test_poll_is_shared_for_one_second(
    mira: FlaskClient, another_worker: Flask, upstream: Upstream, store: redis.Redis
) -> None:
    upstream.headers = {"Cache-Control": "private, max-age=0"}
    paths = [PLAYER, "me/player/currently-playing", "me/player/queue", "me/player?market=SE"]
    for path, upstream.status in product(paths, (200, 204, 404, 500)):
        store.delete(*store.keys("shared:*"), "none")
        upstream.headers["Retry-After"] = "1"  # or a 500 is tried again
        upstream.body = b"" if upstream.status == 204 else b"{}"
        first = get(mira, path)
        [until], [at], [following] = (times(store, what) for what in (b"until:", b"at:", b"next:"))
        assert (first.status_code, first.headers["X-Cache"], first.headers["Age"]) == (
            upstream.status,
            "miss",
            "0",
        )
        assert until - at == 1000
        assert at - LONG * 1000 < following - 1000 <= at  # a second after it was asked for, not after it came
        set_to(store, b"until:", at + 300_000)
        set_to(store, b"next:", at + 3_600_000)
        again = get(another_tab(mira, another_worker), path)
        assert (again.status_code, again.headers["X-Cache"], again.data) == (
            upstream.status,
            "hit",
            first.data,
        )


def test_poll_is_not_shared_after_one_second(mira: FlaskClient, upstream: Upstream) -> None:
    assert get(mira).json == {"call": 1}
    eventually(lambda: get(mira).json == {"call": 2}, timeout=5)
    assert len(upstream.calls) == 2


def times(store: redis.Redis, what: bytes) -> list[int]:
    return [int(value) for name, value in shared(store).items() if name.startswith(what)]


def set_to(store: redis.Redis, what: bytes, value: int) -> None:
    for key in hashes(store):
        for field in store.hkeys(key):
            if field.startswith(what):
                store.hset(key, field, value)


@pytest.mark.settings(GATEWAY_SHARE_SECONDS="0")
def test_share_seconds_of_zero_still_shares_calls_in_progress(
    mira: FlaskClient,
    app: Flask,
    upstream: Upstream,
    pool: ThreadPoolExecutor,
) -> None:
    assert [cache(get(mira)) for _ in range(3)] == ["miss"] * 3
    upstream.hold()
    asked = [ask(pool, mira) for _ in range(4)]
    eventually(lambda: inside(app) == 4)
    upstream.release()
    assert caches(asked) == ["miss"] + ["shared"] * 3
    assert len(upstream.calls) == 4


def test_age_header_is_the_age_in_our_cache(
    mira: FlaskClient, upstream: Upstream, store: redis.Redis
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60", "Age": "1000"}
    assert get(mira, "search?q=a").headers["Age"] == "0"
    [at] = times(store, b"at:")
    set_to(store, b"at:", at - 7000)
    assert get(mira, "search?q=a").headers["Age"] in ("7", "8")


def test_fresh_response_is_served_while_the_next_is_fetched(
    mira: FlaskClient,
    app: Flask,
    another_worker: Flask,
    upstream: Upstream,
    store: redis.Redis,
    pool: ThreadPoolExecutor,
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    get(mira, "search?q=a")
    set_times(store, "next")
    upstream.hold()
    ahead = ask(pool, mira, "search?q=a")
    upstream.wait_for_held(1)

    for worker in (app, another_worker):
        answer = get(another_tab(mira, worker), "search?q=a")
        assert (cache(answer), answer.json) == ("hit", {"call": 1})
    upstream.release()
    assert (cache(ahead.result(LONG)), ahead.result().json) == ("miss", {"call": 2})
    assert get(mira, "search?q=a").json == {"call": 2}
    assert len(upstream.calls) == 2


def test_caller_without_a_slot_gets_a_fresh_response(
    mira: FlaskClient, app: Flask, upstream: Upstream, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "TOTAL_SECONDS", 2.5)
    upstream.headers = {"Cache-Control": "max-age=60"}
    get(mira, "search?q=a")
    set_times(store, "next")
    bulkhead = app.extensions["backline"].gateway._bulkhead
    with ExitStack() as all_places:
        for _ in range(32):
            bulkhead.acquire(all_places.enter_context(bulkhead.admit(object())))
        answer = get(mira, "search?q=a")
        assert (cache(answer), answer.json) == ("hit", {"call": 1})
        set_times(store, "until")
        assert slug(get(mira, "search?q=a")) == "spotify-unavailable"
    assert get(mira, "search?q=a").json == {"call": 2}  # nobody is left behind who seems to ask


def test_caller_that_waits_for_a_slot_does_not_lead(
    answers: Gateway, store: redis.Redis, pool: ThreadPoolExecutor
) -> None:
    """Or nobody would, while all places are held by those who wait for it."""
    elsewhere = gateway_on(store)
    with ExitStack() as all_places:
        for _ in range(16):
            answers._bulkhead.acquire(all_places.enter_context(answers._bulkhead.admit(7)))
        waiting = pool.submit(read, answers, "me", must_not_call, for_a_minute)
        eventually(lambda: any(admission.wants_slot for admission in answers._bulkhead._admissions))
        assert store.hgetall(HASH) == {}  # nobody seems to ask
        assert read(elsewhere, "me", now(b"found"), for_a_minute).cache == "miss"
    assert waiting.result(LONG).spotify.body == b"found"


# Writes


def write(who: FlaskClient, path: str = "me/player/pause") -> TestResponse:
    return who.put(f"{V1}/{path}", json={})


def test_write_drops_the_responses_of_its_connection_only(
    mira: FlaskClient, jonas: FlaskClient, another_worker: Flask, upstream: Upstream
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    assert [get(who, "search?q=a").json["call"] for who in (mira, jonas, mira, jonas)] == [1, 2, 1, 2]
    assert write(another_tab(mira, another_worker)).json == {"call": 3}
    assert [get(who, "search?q=a").json["call"] for who in (mira, jonas)] == [4, 2]


def test_write_drops_responses_whatever_its_status(mira: FlaskClient, upstream: Upstream) -> None:
    for status in (200, 204, 400, 403, 404, 500, 503):
        upstream.status, upstream.body, upstream.headers = 200, None, {"Cache-Control": "max-age=60"}
        assert [cache(get(mira, "search?q=a")) for _ in range(2)] == ["miss", "hit"]
        upstream.status, upstream.body = status, b""
        assert write(mira).status_code == status


def test_write_without_a_response_drops_responses(mira: FlaskClient, sandbox: SandboxClient) -> None:
    assert [cache(get(mira)) for _ in range(2)] == ["miss", "hit"]
    sandbox.fault(on="player", kind="close", after_effect=True)
    assert write(mira).status_code == 503
    assert cache(get(mira)) == "miss"


@pytest.mark.processes
def test_write_drops_responses_even_if_its_process_dies(
    mira: FlaskClient, server: StartServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    with server(workers=1, SPOTIFY_API_URL=upstream.url) as api:

        def call(method: str, path: str) -> requests.Response:
            return requests.request(method, f"{api.url}{V1}/{path}", headers=as_http(mira), timeout=LONG)

        upstream.headers = {"Cache-Control": "max-age=60"}
        assert [call("GET", "search?q=a").headers["X-Cache"] for _ in range(2)] == ["miss", "hit"]
        upstream.hold()
        changing = pool.submit(call, "PUT", "me/player/pause")
        upstream.wait_for_held(1)
        api.kill_worker()
        with pytest.raises(requests.ConnectionError):
            changing.result(LONG)
        upstream.release()
        again = eventually(lambda: call("GET", "search?q=a"))
        assert again.headers["X-Cache"] == "miss"


def test_response_that_arrives_after_a_write_is_not_stored(
    mira: FlaskClient, app: Flask, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    upstream.hold()
    before = ask(pool, mira, "search?q=a")
    upstream.wait_for_held(1)
    changing = pool.submit(write, another_tab(mira))
    upstream.wait_for_held(2)
    app.extensions["backline"].response_cache.drop(link_of(app))  # as the write does when it ends
    upstream.release()

    assert cache(before.result(LONG)) == "miss"
    assert changing.result(LONG).status_code == 200
    after = get(mira, "search?q=a")
    assert (cache(after), after.json) == ("miss", {"call": 3})


def test_waiter_gets_a_response_from_after_a_write(answers: Gateway, pool: ThreadPoolExecutor) -> None:
    old = Fetch(b"old")
    before = pool.submit(read, answers, "me", old, for_a_minute)
    old.wait_until_asked()
    waiting = pool.submit(read, answers, "me", now(b"new"), for_a_minute)
    eventually(lambda: len(answers._bulkhead._admissions) == 2)
    answers._cache.drop(7)
    assert waiting.result(LONG).spotify.body == b"new"
    old.answer()
    assert before.result(LONG).spotify.body == b"old"
    assert read(answers, "me", must_not_call, for_a_minute).spotify.body == b"new"


def link_of(app: Flask) -> int:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(SpotifyUser.id)).one()


# Erasing


@pytest.mark.parametrize("way", ["disconnecting", "deleting the account"])
@pytest.mark.parametrize("under_way", [False, True])
def test_deleted_connection_leaves_no_response_behind(
    mira: FlaskClient,
    upstream: Upstream,
    store: redis.Redis,
    pool: ThreadPoolExecutor,
    way: str,
    under_way: bool,
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    if way == "deleting the account":
        register(mira)
    get(mira, "search?q=a")
    get(mira)
    assert shared(store)
    if under_way:
        upstream.hold()
        late = ask(pool, mira, "me/playlists")
        upstream.wait_for_held(1)

    if way == "disconnecting":
        gone = mira.delete("/api/spotify")
    else:
        gone = mira.delete("/api/user", json={"password": PASSWORD})
    assert gone.status_code == 204

    assert store.keys("shared:*") == []
    if under_way:
        upstream.release()
        assert late.result(LONG).status_code == 200
        assert store.keys("shared:*") == []


def test_responses_are_shared_after_connecting_again(
    mira: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    get(mira, "search?q=a")
    mira.delete("/api/spotify")
    connect(mira, sandbox)
    assert [cache(get(mira, "search?q=a")) for _ in range(2)] == ["miss", "hit"]


# Redis, spoilt or lost


def test_cache_survives_garbage_in_redis(mira: FlaskClient, upstream: Upstream, store: redis.Redis) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    for junk in ("a text", "a list", "entry", "until", "next", "bytes", "leaders", "index", "at"):
        assert [cache(get(mira, "search?q=a")) for _ in range(2)] == ["miss", "hit"]
        [key] = hashes(store)
        name = next(name for name in shared(store) if name.startswith(b"until:")).partition(b":")[2]
        if junk == "a text":
            store.set(key, "junk")
        elif junk == "a list":
            store.delete(key)
            store.rpush(key, "junk")
        elif junk == "bytes":
            store.hset(key, junk, b"\xff junk")
            set_times(store, "until")
        elif junk in ("leaders", "index"):
            store.set(key + b":" + junk.encode(), "junk")
            set_times(store, "until")
            store.hset(key, b"leader:" + name, "somebody")
        else:
            store.hset(key, junk.encode() + b":" + name, b"\xff junk")

        answer = get(mira, "search?q=a")
        assert answer.status_code in (200, 503), junk
        if answer.status_code == 503:
            assert slug(answer) in ("service-unavailable", "spotify-unavailable")
        assert write(mira).status_code == 200  # which drops it


@pytest.mark.parametrize("spoilt", ["index gone", "index of another type"])
def test_cache_repairs_itself(answers: Gateway, store: redis.Redis, spoilt: str) -> None:
    """At the next read of something else, as when Redis has evicted one of the keys."""
    read(answers, "me", now(b"old"), for_a_minute)
    if spoilt == "index of another type":
        store.set(INDEX, "junk")
    else:
        store.delete(INDEX)
        store.hset(HASH, "bytes", 4 * 1024 * 1024)

    read(answers, "search?q=a", now(b"first"), for_a_minute)
    read(answers, "search?q=a", now(b"second"), for_a_minute)

    assert read(answers, "search?q=a", must_not_call, for_a_minute).cache == "hit"


def test_response_is_returned_if_redis_fails_during_the_call(
    redis_proxy: FaultProxy, mira: FlaskClient, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    for call in (get, write):
        upstream.hold()
        asked = pool.submit(call, another_tab(mira))
        upstream.wait_for_held(1)
        redis_proxy.refuse()
        upstream.release()
        assert asked.result(LONG).status_code == 200
        assert slug(get(mira)) == "service-unavailable"
        redis_proxy.restore()
        eventually(lambda: get(mira).status_code == 200)


# Development without a Redis server


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
        answers, call = gateway_on(embedded), Fetch(b"first")
        asked = [pool.submit(read, answers, "me", call, for_a_minute) for _ in range(3)]
        call.wait_until_asked()
        eventually(lambda: len(answers._bulkhead._admissions) == 3)
        [(leader, lease)] = embedded.zrange(LEADERS, 0, -1, withscores=True)
        eventually(lambda: embedded.zscore(LEADERS, leader) > lease)
        call.answer()
        assert sorted(one.result(LONG).cache for one in asked) == ["miss", "shared", "shared"]
        assert read(answers, "me", must_not_call, for_a_minute).cache == "hit"
        set_times(embedded, "next")
        ahead = Fetch(b"second")
        fetching = pool.submit(read, answers, "me", ahead, for_a_minute)
        ahead.wait_until_asked()
        assert read(answers, "me", must_not_call, for_a_minute).spotify.body == b"first"
        ahead.answer()
        fetching.result(LONG)
        assert read(answers, "me", must_not_call, for_a_minute).spotify.body == b"second"
        answers._cache.drop(7)
        assert read(answers, "me", now(b"third"), for_nobody_else).cache == "miss"
        assert embedded.hkeys(HASH) == []  # nobody waited for it

        config = Config.from_env({**env, "GATEWAY_BUDGET": "5"})
        limiter = SpotifyRateLimiter(embedded, config)
        for _ in range(4):
            limiter.acquire(None, is_poll=True)
        with pytest.raises(RateLimited) as over_budget:
            limiter.acquire(None, is_poll=True)
        assert 0 < over_budget.value.retry_after <= 30
        limiter.acquire(None, is_poll=False)
        assert limiter.block_all(HttpResponse(429, {"retry-after": "100"}, b"")) == 100
        assert 90 < SpotifyRateLimiter(embedded, config).retry_after() <= 100
