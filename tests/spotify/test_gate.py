"""When Spotify wants no calls (F5): no process makes any, and nobody sleeps on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.outbound import Answer
from app.parts import redis_client
from app.spotify.accounts import RateLimited
from app.spotify.gate import BUDGET_OF_ONE, Gate
from config import Config
from tests.chaos.processes import RedisServer
from tests.conftest import running_app
from tests.journeys import another_tab, come_back, connect, first_visit, login, register, slug
from tests.sandbox_client import SandboxClient
from tests.services import eventually
from tests.slow_upstream import Upstream, running_upstream

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

NewClient = Callable[[], FlaskClient]


@pytest.fixture
def env(env: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    if "upstream" in request.fixturenames:
        env["SPOTIFY_API_URL"] = request.getfixturevalue("upstream").url
    return {**env, "GATEWAY_SHARE_SECONDS": "0"}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as direct:
        yield direct


@pytest.fixture
def mira(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """Somebody whose Spotify is connected, with nothing in the journal yet."""
    connect(client, sandbox)
    sandbox.clear_calls()
    return client


def get(who: FlaskClient, path: str = "me/player") -> TestResponse:
    return who.get(f"/api/spotify/v1/{path}")


def wait_in(answer: TestResponse) -> int:
    """The seconds that somebody is told to wait, with the problem that belongs to it."""
    assert (answer.status_code, slug(answer)) == (429, "spotify-rate-limited")
    return int(answer.headers["Retry-After"])


def is_about(seconds: int) -> range:
    """So much, or a little less: some of it has passed."""
    return range(max(1, seconds - 20), seconds + 1)


def calls(sandbox: SandboxClient) -> int:
    """Calls to the Web API so far, whosever."""
    return len([call for call in sandbox.calls() if call["path"].startswith("/v1/")])


def close(sandbox: SandboxClient, who: FlaskClient, retry_after: int | None, body: str = "text") -> int:
    """Let Spotify answer one call with 429. Returns what its caller was told."""
    members = {} if retry_after is None else {"retry_after": retry_after}
    sandbox.fault(on="api", kind="rate_limited", body=body, **members)
    return wait_in(get(who))


# How long


@pytest.mark.parametrize("body", ["text", "json", "quota", "empty"])
def test_a_429_closes_the_gate_for_as_long_as_it_says(
    app: Flask,
    mira: FlaskClient,
    another_worker: Flask,
    sandbox: SandboxClient,
    store: redis.Redis,
    body: str,
) -> None:
    elsewhere = another_tab(mira, another_worker)
    unsaid = 3600 if body == "quota" else 30
    for said, wait in (
        (1, 1),
        (35, 35),
        (46_649, 46_649),
        (86_400, 86_400),
        (200_000, 86_400),
        (0, 1),
        (None, unsaid),
    ):
        sandbox.clear_calls()
        assert close(sandbox, mira, said, body) == wait
        if wait > 1:
            assert [wait_in(get(who)) in is_about(wait) for who in (mira, elsewhere)] == [True, True]
            assert wait_in(mira.put("/api/spotify/v1/me/player/pause")) in is_about(wait)
        assert calls(sandbox) == 1
        open_it(store, app, another_worker)


def open_it(store: redis.Redis, *apps: Flask) -> None:
    """Let the wait be over, for all who know of it."""
    store.delete(*store.keys("spotify-wait:*"), "none")
    for app in apps:
        app.extensions["backline"].gate._until = 0.0


def test_a_wait_that_is_no_number_of_seconds_counts_as_unsaid(
    app: Flask, mira: FlaskClient, upstream: Upstream, store: redis.Redis
) -> None:
    upstream.status = 429
    senseless = ["soon", "-5", "1e3", "", "٣", "9" * 30, "Fri, 32 Dec 2027 23:59:59 GMT"]
    for said in senseless:
        upstream.headers = {"Retry-After": said.encode().decode("latin-1")}
        assert wait_in(get(mira)) == 30, said
        assert wait_in(get(mira)) in is_about(30)
        open_it(store, app)
    assert len(upstream.calls) == len(senseless)


def test_a_body_that_only_looks_like_a_quotas_changes_nothing(
    app: Flask, mira: FlaskClient, upstream: Upstream, store: redis.Redis
) -> None:
    upstream.status = 429
    for upstream.body in (
        b'{"error": "QUOTA_EXCEEDED"}',
        b'["QUOTA_EXCEEDED"]',
        b'{"error": null}',
        b"\xff",
        b"[" * 9999,
    ):
        assert wait_in(get(mira)) == 30
        open_it(store, app)


def test_it_opens_by_itself(mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient) -> None:
    assert close(sandbox, mira, 1) == 1
    for who in (mira, another_tab(mira, another_worker)):
        eventually(lambda: get(who).status_code in (200, 204), timeout=5)  # noqa: B023 - called in the loop
    assert calls(sandbox) == 3


# For whom


def test_it_is_closed_for_everybody_and_every_call(
    app: Flask, mira: FlaskClient, new_client: NewClient, another_worker: Flask, sandbox: SandboxClient
) -> None:
    other = new_client()
    connect(other, sandbox, person=next(p["id"] for p in sandbox.people() if p["id"] != "mira_t_42"))
    close(sandbox, mira, 600)
    sandbox.clear_calls()

    for who in (mira, other, another_tab(other, another_worker)):
        for answer in (
            get(who, "me"),
            get(who, "search?q=a&type=track"),
            who.post("/api/spotify/v1/me/player/next"),
            who.delete("/api/spotify/v1/me/library?uris=x"),
        ):
            assert wait_in(answer) in is_about(600)
    assert calls(sandbox) == 0
    assert other.get("/api/spotify").status_code == 200
    assert other.get("/api/session").status_code == 200


def test_who_connects_is_told_as_well_and_costs_no_call(
    mira: FlaskClient, new_client: NewClient, sandbox: SandboxClient
) -> None:
    visitor = new_client()
    callback = sandbox.consent(first_visit(visitor))
    close(sandbox, mira, 600)
    sandbox.clear_calls()

    assert wait_in(come_back(visitor, callback)) in is_about(600)
    assert calls(sandbox) == 0


def test_a_429_to_who_connects_closes_it_for_the_others(
    mira: FlaskClient, new_client: NewClient, sandbox: SandboxClient
) -> None:
    visitor = new_client()
    callback = sandbox.consent(first_visit(visitor))
    sandbox.fault(on="me", kind="rate_limited", retry_after=600)
    assert wait_in(come_back(visitor, callback)) in is_about(600)
    sandbox.clear_calls()

    assert wait_in(get(mira)) in is_about(600)
    assert calls(sandbox) == 0


def test_answers_that_are_still_good_are_served_while_it_is_closed(
    env: dict[str, str], request: pytest.FixtureRequest, sandbox: SandboxClient
) -> None:
    env["GATEWAY_SHARE_SECONDS"] = "60"
    mira = request.getfixturevalue("mira")
    get(mira, "me/player/devices")
    close(sandbox, mira, 600)
    answer = get(mira, "me/player/devices")
    assert (answer.status_code, answer.headers["X-Cache"]) == (200, "hit")


def test_another_client_id_has_a_gate_of_its_own(
    mira: FlaskClient, env: dict[str, str], sandbox: SandboxClient, store: redis.Redis
) -> None:
    close(sandbox, mira, 600)
    assert Gate(store, Config.from_env(env)).wait() > 500
    assert Gate(store, Config.from_env({**env, "SPOTIFY_CLIENT_ID": "another"})).wait() == 0


# For good


def test_a_shorter_wait_does_not_open_it_earlier(
    app: Flask, mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: redis.Redis
) -> None:
    """Two calls are under way; the one that is answered last says less."""
    here, there = (which.extensions["backline"].gate for which in (app, another_worker))
    assert here.close(Answer(429, {"retry-after": "600"}, b"")) == 600
    assert there.close(Answer(429, {"retry-after": "3"}, b"")) == 3
    assert here.close(Answer(429, {"retry-after": "2"}, b"")) == 2
    for who in (mira, another_tab(mira, another_worker)):
        assert wait_in(get(who)) in is_about(600)
    assert there.close(Answer(429, {"retry-after": "900"}, b"")) == 900
    assert wait_in(get(mira)) in is_about(900)
    assert calls(sandbox) == 0

    # What Redis knows became no shorter, nor what the process knows: each makes up for the other's loss.
    here.close(Answer(429, {"retry-after": "5"}, b""))
    [key] = store.keys("spotify-wait:*")
    assert store.ttl(key) in is_about(900)
    store.delete(key)
    assert 800 < here.wait() <= 900


def test_a_redis_that_was_emptied_is_told_again(
    client: FlaskClient,
    app: Flask,
    another_worker: Flask,
    env: dict[str, str],
    sandbox: SandboxClient,
    store: redis.Redis,
) -> None:
    user = register(client)
    connect(client, sandbox)
    elsewhere = another_tab(client, another_worker)
    close(sandbox, client, 46_649)
    wait_in(get(elsewhere))
    sandbox.clear_calls()
    for who in (client, elsewhere):
        store.flushall()
        assert login(who, user["username"]).status_code == 200
        assert wait_in(get(who)) in is_about(46_649)
        with running_app(env) as fresh:  # has never met it
            assert wait_in(get(another_tab(who, fresh))) in is_about(46_649)
    assert calls(sandbox) == 0


def test_it_outlives_redis_itself(
    env: dict[str, str], request: pytest.FixtureRequest, sandbox: SandboxClient
) -> None:
    with TemporaryDirectory(prefix="backline-", dir="/tmp") as home, RedisServer(Path(home)) as server:
        env["REDIS_URL"] = f"unix://{server.socket}"
        client, app = request.getfixturevalue("client"), request.getfixturevalue("app")
        user = register(client)
        connect(client, sandbox)
        close(sandbox, client, 600)
        sandbox.clear_calls()
        server.kill()
        assert app.extensions["backline"].gate.wait() > 500
        assert slug(get(client)) == "service-unavailable"
        server.start()
        eventually(lambda: login(client, user["username"]).status_code == 200)
        assert wait_in(get(client)) in is_about(600)
        with running_app(env) as fresh:
            assert fresh.extensions["backline"].gate.wait() > 500
        server.client.close()
    assert calls(sandbox) == 0


def test_garbage_in_redis_does_not_break_it(
    app: Flask, mira: FlaskClient, sandbox: SandboxClient, store: redis.Redis
) -> None:
    close(sandbox, mira, 600)
    [key] = store.keys("spotify-wait:*")
    for plant in (
        lambda: store.set(key, "junk"),
        lambda: store.rpush(key, "junk"),
        lambda: store.hset(key, "a", "b"),
    ):
        store.delete(key)
        plant()
        assert wait_in(get(mira)) in is_about(600)
        assert store.ttl(key) > 500
        store.expire(key, 5000)
    assert wait_in(get(mira)) > 600  # the longer one of what Redis and the process know


# The budget


def spent(store: redis.Redis) -> int:
    return sum(store.zcard(key) for key in store.keys("spotify-budget:*"))


def test_polls_may_use_four_fifths_of_the_budget_and_clicks_all_of_it(
    env: dict[str, str], request: pytest.FixtureRequest, sandbox: SandboxClient, store: redis.Redis
) -> None:
    env["GATEWAY_BUDGET"] = "10"
    mira, another_worker = (request.getfixturevalue(name) for name in ("mira", "another_worker"))
    store.delete(*store.keys("spotify-budget:*"))  # what connecting has cost
    tabs = [mira, another_tab(mira, another_worker)]

    polls = [get(tabs[number % 2]) for number in range(8)]
    assert {answer.status_code for answer in polls} <= {200, 204}
    assert [wait_in(get(tab)) in range(1, 31) for tab in tabs] == [True, True]
    clicks = [get(tabs[0], "me"), tabs[1].put("/api/spotify/v1/me/player/volume?volume_percent=20")]
    assert max(answer.status_code for answer in clicks) < 300
    assert [wait_in(get(tab, "me")) in range(1, 31) for tab in tabs] == [True, True]
    assert calls(sandbox) == spent(store) == 10

    make_older(store, 29)
    assert wait_in(get(mira, "me")) in (1, 2)
    make_older(store, 2)
    assert get(mira, "me").status_code == 200
    assert spent(store) == 1
    assert 0 < store.pttl(store.keys("spotify-budget:*")[0]) <= 30_000


def make_older(store: redis.Redis, seconds: int) -> None:
    for key in store.keys("spotify-budget:*"):
        for member, score in store.zrange(key, 0, -1, withscores=True):
            store.zadd(key, {member: score - seconds * 1000})


def test_there_is_no_budget_unless_one_is_set(
    mira: FlaskClient, sandbox: SandboxClient, store: redis.Redis
) -> None:
    assert {get(mira).status_code for _ in range(60)} <= {200, 204}
    assert calls(sandbox) == 60
    assert store.keys("spotify-budget:*") == []


def test_one_link_cannot_use_up_what_is_everybodys(
    app: Flask, store: redis.Redis, env: dict[str, str]
) -> None:
    gate = Gate(store, Config.from_env(env))
    for _ in range(BUDGET_OF_ONE):
        gate.pass_or_refuse(1, is_poll=False)
    with pytest.raises(RateLimited) as refused:
        gate.pass_or_refuse(1, is_poll=False)
    assert 0 < refused.value.retry_after <= 30
    gate.pass_or_refuse(2, is_poll=False)
    gate.pass_or_refuse(None, is_poll=False)


def test_a_call_that_is_refused_does_not_count(env: dict[str, str], app: Flask, store: redis.Redis) -> None:
    gate = Gate(store, Config.from_env({**env, "GATEWAY_BUDGET": "1"}))
    gate.pass_or_refuse(None, is_poll=True)  # one is one, and not four fifths of it
    for _ in range(5):
        with pytest.raises(RateLimited):
            gate.pass_or_refuse(None, is_poll=False)
    assert spent(store) == 1


@pytest.mark.parametrize("trouble", ["away", "spoilt"])
def test_what_cannot_be_counted_passes(
    env: dict[str, str], app: Flask, store: redis.Redis, trouble: str
) -> None:
    config = Config.from_env({**env, "GATEWAY_BUDGET": "1"})
    client = redis_client("redis://127.0.0.1:1/0") if trouble == "away" else store
    store.set(f"spotify-budget:{config.spotify_client_id}", "junk")
    gate = Gate(client, config)
    for _ in range(3):
        gate.pass_or_refuse(None, is_poll=True)
    assert gate.close(Answer(429, {"retry-after": "100"}, b"")) == 100
    with pytest.raises(RateLimited) as refused:
        gate.pass_or_refuse(None, is_poll=True)
    assert refused.value.retry_after in is_about(100)
