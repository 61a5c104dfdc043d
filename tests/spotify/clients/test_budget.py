"""The budget limits the calls in any 30 seconds. People share it by max-min fairness."""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.infra.http_client import HttpResponse
from app.infra.redis_client import redis_client
from app.spotify.clients.budget import WINDOW_SECONDS, Budget
from app.spotify.clients.errors import RateLimited
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from config import Config, ConfigError
from tests.helpers.cached_reads import Store, another_person, get, milliseconds
from tests.helpers.flows import another_tab, connect
from tests.helpers.rate_limits import calls, limiter_with, retry_after_of, seconds_left
from tests.helpers.sandbox_client import SandboxClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(GATEWAY_SHARE_SECONDS="0"),
]

NewClient = Callable[[], FlaskClient]

# Moves calls into the past. KEYS: all that is stored about them. ARGV: seconds, the number of slots.
AGE = """
for _, key in ipairs(KEYS) do
  local fields = redis.call('HGETALL', key)
  redis.call('DEL', key)
  for index = 1, #fields, 2 do
    local name, value = fields[index], fields[index + 1]
    local kind, at, count = string.match(name, '^(%a?)%d+$'), string.match(value, '^(%d+):(%d+)$')
    if kind and at then
      name = string.format('%s%d', kind, (at - ARGV[1]) % ARGV[2])
      value = string.format('%d:%s', at - ARGV[1], count)
    elseif name == 'period' or name == 'previous' then
      value = string.format('%d', math.max(0, value - ARGV[1]))
    end
    redis.call('HSET', key, name, value)
  end
end
"""


@pytest.fixture
def mira(client: FlaskClient, sandbox: SandboxClient, store: Store) -> FlaskClient:
    """Return the client of a person who has connected Spotify, and made no call since."""
    connect(client, sandbox)
    sandbox.clear_calls()
    store.delete(*store.keys("spotify-calls:*"))
    return client


def spent(store: Store, caller: object = None) -> int:
    """Return how many calls are counted, of all callers or of one."""
    [total] = store.keys("spotify-calls:*}")
    key = total if caller is None else total + f":{caller}".encode()
    return sum(int(value.partition(b":")[2]) for name, value in store.hgetall(key).items() if name.isdigit())


def age_calls(store: Store, seconds: int) -> None:
    """Move all calls so far into the past."""
    keys = store.keys("spotify-calls:*")
    store.eval(AGE, len(keys), *keys, seconds, WINDOW_SECONDS + 1)


def try_call(limiter: SpotifyRateLimiter, caller: int | None, *, is_poll: bool = False) -> bool:
    """Return whether the budget has room for a call."""
    try:
        limiter.acquire(caller, is_poll=is_poll)
    except RateLimited:
        return False
    return True


def count_allowed_calls(limiter: SpotifyRateLimiter, caller: int | None, *, is_poll: bool = False) -> int:
    """Make calls until there is no room. Returns their number."""
    for number in range(1000):
        if not try_call(limiter, caller, is_poll=is_poll):
            return number
    raise AssertionError("there is no limit")


@pytest.mark.settings(GATEWAY_BUDGET="10")
def test_polls_can_use_four_fifths_of_the_budget(
    mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: Store
) -> None:
    tabs = [mira, another_tab(mira, another_worker)]

    polls = [get(tabs[number % 2]) for number in range(8)]
    assert {response.status_code for response in polls} <= {200, 204}
    assert [retry_after_of(get(tab)) in range(1, 31) for tab in tabs] == [True, True]
    clicks = [get(tabs[0], "me"), tabs[1].put("/api/spotify/v1/me/player/volume?volume_percent=20")]
    assert max(response.status_code for response in clicks) < 300
    assert [retry_after_of(get(tab, "me")) in range(1, 31) for tab in tabs] == [True, True]
    assert calls(sandbox) == spent(store) == 10

    age_calls(store, 31)
    assert get(mira, "me").status_code == 200


@pytest.mark.settings(GATEWAY_BUDGET="2")
def test_call_waits_for_the_budget_until_its_deadline(mira: FlaskClient, store: Store) -> None:
    assert [get(mira, f"me?{number}").status_code for number in range(2)] == [200, 200]
    assert retry_after_of(get(mira, "me?late")) > 14  # longer than a request can take
    age_calls(store, 29)
    assert get(mira, "me?patient").status_code == 200


def test_person_can_use_what_others_do_not_request(env: dict[str, str], app: Flask, store: Store) -> None:
    limiter = limiter_with(env, app, GATEWAY_BUDGET="20")
    assert count_allowed_calls(limiter, 1) == 20  # alone
    age_calls(store, 62)
    assert [try_call(limiter, 2) for _ in range(3)] == [True, True, True]
    assert count_allowed_calls(limiter, 1) == 16  # a twentieth is left to small requests
    assert [try_call(limiter, 3), try_call(limiter, 2)] == [True, False]
    age_calls(store, 62)
    assert count_allowed_calls(limiter, 3, is_poll=True) == 16  # alone again, and polls
    assert count_allowed_calls(limiter, 3) == 4


def test_calls_before_others_came_are_not_taken_from_small_requests(
    env: dict[str, str], app: Flask, store: Store
) -> None:
    limiter = limiter_with(env, app, GATEWAY_BUDGET="20")
    assert [try_call(limiter, 2) for _ in range(3)] == [True, True, True]
    age_calls(store, 31)
    assert all(try_call(limiter, 1) for _ in range(12))  # there was room for more
    assert count_allowed_calls(limiter, 3) == 4  # less than the fair share, which is 8
    assert [try_call(limiter, 2) for _ in range(3)] == [True, True, True]


def test_person_who_waits_gets_more(env: dict[str, str], app: Flask, store: Store) -> None:
    """Otherwise, people who wait for each response would never reach their share."""
    limiter = limiter_with(env, app, GATEWAY_BUDGET="20")
    assert count_allowed_calls(limiter, 1) == 20
    allowed = []
    for _ in range(3):
        allowed.append(count_allowed_calls(limiter, 2))
        age_calls(store, 31)
        count_allowed_calls(limiter, 1)
    assert allowed == [0, 3, 8]


def test_polls_leave_a_call_of_each_share_to_clicks(env: dict[str, str], app: Flask, store: Store) -> None:
    """With twenty people, a share is one call."""
    limiter = limiter_with(env, app, GATEWAY_BUDGET="20")
    for _ in range(2):
        for person in range(20):
            try_call(limiter, person, is_poll=True)
        age_calls(store, 10)
    assert spent(store) == 16
    assert [try_call(limiter, person) for person in (0, 0, 19, 19)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("limit", "requests"),
    [(30, {1: 155, 2: 155, 3: 3}), (100, {1: 310, 2: 248, 3: 62, 4: 9, 5: 2}), (5, {1: 93, 2: 93, 3: 93})],
    ids=["two greedy, one modest", "all kinds", "small"],
)
def test_people_share_the_budget_by_max_min_fairness(
    env: dict[str, str], app: Flask, store: Store, limit: int, requests: dict[int, int]
) -> None:
    """`requests` are the number of requests of each person in 31 seconds, which are simulated one by one."""
    limiter, slots = limiter_with(env, app, GATEWAY_BUDGET=str(limit)), WINDOW_SECONDS + 1
    allowed: list[tuple[int, int]] = []
    rejected: Counter[int] = Counter()
    began = seconds(store)
    simulated = 0
    for second in range(5 * slots):
        due = [
            person
            for person, number in requests.items()
            for _ in range((second + 1) * number // slots - second * number // slots)
        ]
        random.Random(second).shuffle(due)
        for person in due:
            if try_call(limiter, person):
                # A busy machine may make all calls of a second later.
                allowed.append((seconds(store) - began + simulated, person))
            elif second >= slots:
                rejected[person] += 1
        # A second passes, unless it has really passed.
        step = max(0, second + 1 - (seconds(store) - began) - simulated)
        age_calls(store, step)
        simulated += step

    busiest = max(sum(at <= other < at + WINDOW_SECONDS for other, _ in allowed) for at, _ in allowed)
    assert limit * 0.9 - 1 <= busiest <= limit
    # In the first window, no one's demand is known.
    received = Counter(person for at, person in allowed if at >= slots)
    shares = max_min_shares(requests, limit)
    for person, number in requests.items():
        assert received[person] / 4 == pytest.approx(shares[person], rel=0.15, abs=1), person
        if number <= shares[person]:
            assert not rejected[person], person


def seconds(store: Store) -> int:
    """Return Redis' time."""
    return int(store.time()[0])


def max_min_shares(requests: dict[int, int], limit: int) -> dict[int, float]:
    """Return how much of the limit each person should get."""
    shares: dict[int, float] = {}
    room = float(limit)
    for person, number in sorted(requests.items(), key=lambda item: item[1]):
        shares[person] = min(number, room / (len(requests) - len(shares)))
        room -= shares[person]
    return shares


def test_budget_is_learned_when_everything_is_rejected(env: dict[str, str], app: Flask, store: Store) -> None:
    limiter = limiter_with(env, app, GATEWAY_BUDGET="auto")
    rejection = HttpResponse(429, {"retry-after": "1"}, b"")
    for number in range(300):
        assert try_call(limiter, number % 3)
    assert store.keys("spotify-budget:*") == []
    limiter.record_429("search", rejection)  # of one endpoint
    assert store.keys("spotify-budget:*") == []
    limiter.block_all(rejection)
    limiter.block_all(rejection)  # simultaneous rejections are learned from once
    [key] = store.keys("spotify-budget:*")
    assert store.hget(key, "limit") == b"240"
    assert 0 < store.ttl(key) <= 86_400

    def limit_after(minutes: int) -> int:
        store.delete(*store.keys("spotify-calls:*"), *store.keys("spotify-wait:*"), "none")
        limiter._until.clear()
        store.hincrby(key, "since", -minutes * 60_000)
        return count_allowed_calls(limiter, 1)

    assert limit_after(9) == 240
    assert limit_after(1) == 252
    assert limit_after(10) == 265  # 264.6
    assert limiter.budget_usage()[1] == 265

    # Another rejection, after a wait and only a few calls.
    store.delete(*store.keys("spotify-calls:*"))
    try_call(limiter, 1)
    limiter.block_all(rejection)
    assert store.hget(key, "limit") == b"132"
    # Redis' clock was set back: the limit grows from now on, not in some hours.
    store.hincrby(key, "since", 3_600_000)
    assert limit_after(0) == 132


def test_fixed_budget_does_not_learn(env: dict[str, str], app: Flask, store: Store) -> None:
    limiter = limiter_with(env, app, GATEWAY_BUDGET="100")
    try_call(limiter, 1)
    limiter.block_all(HttpResponse(429, {}, b""))
    assert store.keys("spotify-budget:*") == []
    assert limiter.budget_usage() == (1, 100)


@pytest.mark.parametrize("budget", ["0", "-1", "1.5", "unlimited", "1000001"])
def test_budget_setting_is_auto_or_a_positive_number(env: dict[str, str], app: Flask, budget: str) -> None:
    with pytest.raises(ConfigError, match="GATEWAY_BUDGET must be auto or a whole number from 1 to 1000000"):
        Config.from_env({**env, "GATEWAY_BUDGET": budget})


def test_rejected_call_does_not_use_the_budget(env: dict[str, str], app: Flask, store: Store) -> None:
    limiter = limiter_with(env, app, GATEWAY_BUDGET="1")
    assert (
        count_allowed_calls(limiter, None, is_poll=True) == 1
    )  # at least one, although four fifths are less
    assert count_allowed_calls(limiter, None) == 0
    assert spent(store) == spent(store, "connecting") == 1


@pytest.mark.parametrize("failure", ["away", "a text", "a list", "times ahead"])
def test_call_passes_if_the_budget_cannot_be_counted(
    env: dict[str, str], app: Flask, store: Store, failure: str
) -> None:
    config = Config.from_env({**env, "GATEWAY_BUDGET": "1"})
    client = redis_client("redis://127.0.0.1:1/0") if failure == "away" else app.extensions["backline"].redis
    key = f"spotify-calls:{{{config.spotify_client_id}}}"
    if failure == "a text":
        store.set(key, "junk")
    elif failure == "a list":
        store.rpush(key, "junk")
    else:
        ahead = milliseconds(store) + 10**9
        fields = {str(slot): f"{ahead // 1000 + slot}:500" for slot in range(31)}
        store.hset(key, mapping=fields)
        store.hset(f"{key}:people", mapping={"period": ahead // 1000, "b1": 1000, "n1": 1000})
        store.hset(f"{key}:1", mapping={**fields, "period": ahead // 1000, "demand": 500})
    limiter = SpotifyRateLimiter(client, config.spotify_client_id, config.gateway_budget)
    assert try_call(limiter, 1)
    assert limiter.block_all(HttpResponse(429, {"retry-after": "100"}, b"")) == 100
    with pytest.raises(RateLimited) as rejected:
        limiter.acquire(None, is_poll=True)
    assert rejected.value.retry_after in seconds_left(100)
    if failure in ("a text", "a list"):  # calls are counted again
        limiter._until.clear()
        store.delete(*store.keys("spotify-wait:*"))
        assert count_allowed_calls(limiter, 1) == 1


def test_budget_costs_the_same_after_many_calls(env: dict[str, str], app: Flask, store: Store) -> None:
    def commands() -> int:
        before = int(store.info("stats")["total_commands_processed"])
        try_call(limiter, 1)
        return int(store.info("stats")["total_commands_processed"]) - before

    limiter = limiter_with(env, app, GATEWAY_BUDGET="100000")
    commands()
    few = commands()
    for number in range(300):
        try_call(limiter, number)
    assert commands() <= few + 35  # one caller or several


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how long people are asked to wait. A zero is a call that a budget allows."""
    spend, found = Budget.spend, []

    def record(self: Budget, spotify_user_id: int | None, **options: bool) -> float:
        found.append(spend(self, spotify_user_id, **options))
        return found[-1]

    monkeypatch.setattr(Budget, "spend", record)
    return found


@pytest.mark.settings(GATEWAY_BUDGET="20")
def test_modest_person_does_not_wait_for_a_greedy_one(
    mira: FlaskClient, new_client: NewClient, sandbox: SandboxClient, store: Store
) -> None:
    connect(modest := new_client(), sandbox, person=another_person(sandbox))
    store.delete(*store.keys("spotify-calls:*"))
    allowed = []
    for _ in range(2):
        for number in range(3):
            read_tracks(modest, number)
        statuses = [get(mira, f"search?q={number}&type=track").status_code for number in range(20)]
        allowed.append(statuses.count(200))
        age_calls(store, WINDOW_SECONDS + 1)
    statuses = [get(mira, f"search?q={number}&type=track").status_code for number in range(20)]
    allowed.append(statuses.count(200))
    for number in range(3):
        read_tracks(modest, number)

    assert allowed == [16, 16, 16]  # a twentieth is left to small requests


def read_tracks(client: FlaskClient, number: int) -> None:
    assert get(client, f"search?q={number}&type=track").status_code == 200


@pytest.mark.settings(THREADS="32")
def test_nothing_but_spotify_limits_a_person_by_default(
    mira: FlaskClient, sandbox: SandboxClient, waits: list[float]
) -> None:
    """A script makes 100 calls in a row, and then 100 on 20 threads."""
    for number in range(100):
        read_tracks(mira, number)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda number: read_tracks(another_tab(mira), number), range(100, 200)))
    assert calls(sandbox) == 200
    assert waits == []
