"""After a 429 (F5, S3), no process makes the calls that it concerns. Other calls continue."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.http_client import HttpResponse
from app.infra.redis_client import redis_client
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from config import Config
from tests.conftest import MakeApp
from tests.helpers.cached_reads import Store
from tests.helpers.flows import (
    another_tab,
    connect,
    login,
    register,
    send_callback,
    slug,
    start_authorization,
)
from tests.helpers.processes import RedisServer
from tests.helpers.rate_limits import calls, limiter_with, retry_after_of, seconds_left
from tests.helpers.sandbox_client import CLIENT_ID, SandboxClient
from tests.helpers.servers import eventually
from tests.helpers.upstream import Upstream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(GATEWAY_SHARE_SECONDS="0"),
]

NewClient = Callable[[], FlaskClient]


@pytest.fixture
def mira(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """Return the client of a person who has connected Spotify. The journal is empty."""
    connect(client, sandbox)
    sandbox.clear_calls()
    return client


def get(person: FlaskClient, path: str = "me/player") -> TestResponse:
    return person.get(f"/api/spotify/v1/{path}")


def block(sandbox: SandboxClient, person: FlaskClient, retry_after: int | None, body: str = "text") -> int:
    """Let Spotify respond 429 to a call and to the canary. Returns the caller's Retry-After."""
    members = {} if retry_after is None else {"retry_after": retry_after}
    sandbox.fault(on="api", kind="rate_limited", body=body, times=1 if body == "quota" else 2, **members)
    return retry_after_of(get(person))


# Length of the wait


@pytest.mark.parametrize("body", ["text", "json", "quota", "empty"])
def test_429_blocks_calls_for_as_long_as_it_says(
    app: Flask,
    mira: FlaskClient,
    another_worker: Flask,
    sandbox: SandboxClient,
    store: Store,
    body: str,
) -> None:
    elsewhere = another_tab(mira, another_worker)
    default_wait = 3600 if body == "quota" else 30
    for value, wait in (
        (1, 1),
        (35, 35),
        (46_649, 46_649),
        (86_400, 86_400),
        (200_000, 86_400),
        (0, 1),
        (None, default_wait),
    ):
        sandbox.clear_calls()
        assert block(sandbox, mira, value, body) == wait
        if wait > 1:
            assert [retry_after_of(get(person)) in seconds_left(wait) for person in (mira, elsewhere)] == [
                True,
                True,
            ]
            assert retry_after_of(mira.put("/api/spotify/v1/me/player/pause")) in seconds_left(wait)
        assert calls(sandbox) == (1 if body == "quota" else 2)  # with the canary
        end_wait(store, app, another_worker)


def end_wait(store: Store, *apps: Flask) -> None:
    """End all waits, in Redis and in these processes."""
    store.delete(*store.keys("spotify-*"), "none")
    for app in apps:
        app.extensions["backline"].rate_limiter._until.clear()


def test_malformed_quota_error_is_ignored(
    app: Flask, mira: FlaskClient, upstream: Upstream, store: Store
) -> None:
    upstream.status = 429
    for upstream.body in (
        b'{"error": "QUOTA_EXCEEDED"}',
        b'["QUOTA_EXCEEDED"]',
        b'{"error": null}',
        b"\xff",
        b"[" * 9999,
    ):
        assert retry_after_of(get(mira)) == 30
        end_wait(store, app)


def test_wait_ends_by_itself(
    mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: Store
) -> None:
    assert block(sandbox, mira, 1) == 1
    store.delete(*store.keys("spotify-budget:*"))  # not to be limited by the budget
    for person in (mira, another_tab(mira, another_worker)):
        eventually(lambda: get(person).status_code in (200, 204))  # noqa: B023 - called in the loop
    assert calls(sandbox) == 4


# Who waits


def test_wait_applies_to_all_people_and_calls(
    app: Flask, mira: FlaskClient, new_client: NewClient, another_worker: Flask, sandbox: SandboxClient
) -> None:
    other = new_client()
    connect(other, sandbox, person=next(p["id"] for p in sandbox.people() if p["id"] != "mira_t_42"))
    block(sandbox, mira, 600)
    sandbox.clear_calls()

    for person in (mira, other, another_tab(other, another_worker)):
        for response in (
            get(person, "me"),
            get(person, "search?q=a&type=track"),
            person.post("/api/spotify/v1/me/player/next"),
            person.delete("/api/spotify/v1/me/library?uris=x"),
        ):
            assert retry_after_of(response) in seconds_left(600)
    assert calls(sandbox) == 0
    assert other.get("/api/spotify").status_code == 200
    assert other.get("/api/session").status_code == 200


def test_callback_during_a_wait_makes_no_call(
    mira: FlaskClient, new_client: NewClient, sandbox: SandboxClient
) -> None:
    visitor = new_client()
    callback = sandbox.consent(start_authorization(visitor))
    block(sandbox, mira, 600)
    sandbox.clear_calls()

    assert retry_after_of(send_callback(visitor, callback)) in seconds_left(600)
    assert calls(sandbox) == 0


def test_429_during_a_callback_blocks_only_me(
    mira: FlaskClient, new_client: NewClient, another_worker: Flask, sandbox: SandboxClient
) -> None:
    visitor = new_client()
    callback = sandbox.consent(start_authorization(visitor))
    sandbox.fault(on="me", kind="rate_limited", retry_after=600)
    assert retry_after_of(send_callback(visitor, callback)) in seconds_left(600)
    sandbox.clear_calls()

    for person in (mira, another_tab(mira, another_worker)):
        assert get(person).status_code in (200, 204)
        assert retry_after_of(get(person, "me")) in seconds_left(600)
    assert calls(sandbox) == 2

    # The code of the next person is not consumed.
    late = new_client()
    late_callback = sandbox.consent(start_authorization(late))
    sandbox.clear_calls()
    assert retry_after_of(send_callback(late, late_callback)) in seconds_left(600)
    assert sandbox.calls() == []


@pytest.mark.settings(GATEWAY_SHARE_SECONDS="60")
def test_fresh_responses_are_served_during_a_wait(mira: FlaskClient, sandbox: SandboxClient) -> None:
    get(mira, "me/player/devices")
    block(sandbox, mira, 600)
    response = get(mira, "me/player/devices")
    assert (response.status_code, response.headers["X-Cache"]) == (200, "hit")


def test_wait_does_not_apply_to_another_client_id(
    mira: FlaskClient, app: Flask, env: dict[str, str], sandbox: SandboxClient
) -> None:
    block(sandbox, mira, 600)
    assert limiter_with(env, app).retry_after() > 500
    assert limiter_with(env, app, SPOTIFY_CLIENT_ID="another").retry_after() == 0


# Persistence


def test_shorter_wait_does_not_shorten_a_longer_one(
    app: Flask, mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: Store
) -> None:
    """The second of two simultaneous 429s asks for a shorter wait."""
    here, there = (which.extensions["backline"].rate_limiter for which in (app, another_worker))
    assert here.block_all(HttpResponse(429, {"retry-after": "600"}, b"")) == 600
    assert there.block_all(HttpResponse(429, {"retry-after": "3"}, b"")) == 3
    assert here.block_all(HttpResponse(429, {"retry-after": "2"}, b"")) == 2
    for person in (mira, another_tab(mira, another_worker)):
        assert retry_after_of(get(person)) in seconds_left(600)
    assert there.block_all(HttpResponse(429, {"retry-after": "900"}, b"")) == 900
    assert retry_after_of(get(mira)) in seconds_left(900)
    assert calls(sandbox) == 0

    # Redis and the process keep the longer wait, and each restores it for the other.
    here.block_all(HttpResponse(429, {"retry-after": "5"}, b""))
    [key] = store.keys("spotify-wait:*")
    assert store.ttl(key) in seconds_left(900)
    store.delete(key)
    assert 800 < here.retry_after() <= 900


def test_wait_is_restored_after_redis_was_emptied(
    client: FlaskClient,
    app: Flask,
    another_worker: Flask,
    make_app: MakeApp,
    sandbox: SandboxClient,
    store: Store,
) -> None:
    user = register(client)
    connect(client, sandbox)
    elsewhere = another_tab(client, another_worker)
    block(sandbox, client, 46_649)
    retry_after_of(get(elsewhere))
    sandbox.clear_calls()
    for person in (client, elsewhere):
        store.flushall()
        assert login(person, user["username"]).status_code == 200
        assert retry_after_of(get(person)) in seconds_left(46_649)
        fresh = make_app()  # has not seen it
        assert retry_after_of(get(another_tab(person, fresh))) in seconds_left(46_649)
    assert calls(sandbox) == 0


def test_wait_survives_a_restart_of_redis(make_app: MakeApp, sandbox: SandboxClient) -> None:
    with TemporaryDirectory(prefix="backline-", dir="/tmp") as home, RedisServer(Path(home)) as server:
        app = make_app(REDIS_URL=f"unix://{server.socket}")
        client = app.test_client()
        user = register(client)
        connect(client, sandbox)
        block(sandbox, client, 600)
        sandbox.clear_calls()
        server.kill()
        assert app.extensions["backline"].rate_limiter.retry_after() > 500
        assert slug(get(client)) == "service-unavailable"
        server.start()
        eventually(lambda: login(client, user["username"]).status_code == 200)
        assert retry_after_of(get(client)) in seconds_left(600)
        fresh = make_app(REDIS_URL=f"unix://{server.socket}")
        assert fresh.extensions["backline"].rate_limiter.retry_after() > 500
        server.client.close()
    assert calls(sandbox) == 0


def test_wait_survives_garbage_in_redis(
    app: Flask, mira: FlaskClient, sandbox: SandboxClient, store: Store
) -> None:
    block(sandbox, mira, 600)
    [key] = store.keys("spotify-wait:*}")
    plants: list[Callable[[], object]] = [
        lambda: store.set(key, "junk"),
        lambda: store.rpush(key, "junk"),
        lambda: store.hset(key, "a", "b"),
    ]
    for plant in plants:
        store.delete(key)
        plant()
        assert retry_after_of(get(mira)) in seconds_left(600)
        assert store.ttl(key) > 500
    store.set(key, 5_000_000, px=5_000_000)
    assert retry_after_of(get(mira)) > 600  # the longer of the two


@pytest.mark.parametrize(
    ("value", "milliseconds", "most"),
    [("30000", 3_630_000, 30), ("9" * 15, 10**12, 86_400), ("-5", 50_000, 0), ("30000", None, 0)],
    ids=["clock set back", "absurd", "negative", "without an end"],
)
def test_stored_wait_is_capped_at_its_original_length(
    env: dict[str, str], app: Flask, store: Store, value: str, milliseconds: int | None, most: int
) -> None:
    config = Config.from_env(env)
    store.set(f"spotify-wait:{{{config.spotify_client_id}}}", value, px=milliseconds)
    assert most - 20 <= limiter_with(env, app).retry_after() <= most
    # It continues, and does not restart with each lookup.
    assert store.pttl(f"spotify-wait:{{{config.spotify_client_id}}}") <= most * 1000


# Which calls wait


def test_429_blocks_only_its_endpoint(
    env: dict[str, str],
    app: Flask,
    mira: FlaskClient,
    new_client: NewClient,
    another_worker: Flask,
    sandbox: SandboxClient,
    store: Store,
) -> None:
    other = new_client()
    connect(other, sandbox, person=next(p["id"] for p in sandbox.people() if p["id"] != "mira_t_42"))
    sandbox.fault(on="api", kind="rate_limited", retry_after=3600)
    assert retry_after_of(put_cover(mira, "one")) == 3600
    sandbox.clear_calls()

    for person in (other, another_tab(mira, another_worker)):
        assert retry_after_of(put_cover(person, "two")) in seconds_left(3600)
        assert get(person).status_code in (200, 204)
        assert get(person, "me").status_code == 200
    assert calls(sandbox) == 4
    connect(new_client(), sandbox)

    store.flushall()  # Redis has lost it, and the process restores it
    limiter = app.extensions["backline"].rate_limiter
    assert limiter.retry_after() == 0
    assert limiter.endpoint_waits() == {"playlists/{id}/images": pytest.approx(3600, abs=60)}
    assert limiter_with(env, app).retry_after("playlists/{id}/images") > 3500


def put_cover(person: FlaskClient, playlist: str) -> TestResponse:
    return person.put(f"/api/spotify/v1/playlists/{playlist}/images", data=b"/9j/", content_type="image/jpeg")


def test_second_endpoint_rejected_within_ten_seconds_blocks_everything(
    app: Flask, mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: Store
) -> None:
    elsewhere = another_tab(mira, another_worker)
    sandbox.fault(on="api", kind="rate_limited", retry_after=60)
    retry_after_of(put_cover(mira, "one"))
    sandbox.fault(on="api", kind="rate_limited", retry_after=70)
    assert retry_after_of(get(elsewhere, "search?q=a&type=track")) == 70
    assert retry_after_of(get(mira, "me/player")) in seconds_left(70)

    # After that time, the second 429 concerns only its endpoint.
    end_wait(store, app, another_worker)
    sandbox.fault(on="api", kind="rate_limited", retry_after=60)
    retry_after_of(put_cover(mira, "one"))
    [key] = store.keys("spotify-last-rejection:*")
    assert 0 < store.pttl(key) <= 10_000
    store.delete(key)
    sandbox.fault(on="api", kind="rate_limited", retry_after=60)
    retry_after_of(get(elsewhere, "search?q=a&type=track"))
    assert get(mira, "me/player").status_code in (200, 204)


def test_independent_endpoints_block_everything_only_once(
    app: Flask, mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: Store
) -> None:
    def call_both() -> None:
        sandbox.fault(on="api", kind="rate_limited", retry_after=60)
        retry_after_of(put_cover(mira, "one"))
        sandbox.fault(on="api", kind="rate_limited", retry_after=60)
        retry_after_of(get(another_tab(mira, another_worker), "search?q=a&type=track"))

    def end_waits() -> None:
        store.delete(*store.keys("spotify-wait:*"), *store.keys("spotify-budget:*"))
        for worker in (app, another_worker):
            worker.extensions["backline"].rate_limiter._until.clear()

    call_both()
    assert retry_after_of(get(mira)) in seconds_left(60)
    end_waits()
    store.delete(*store.keys("spotify-last-rejection:*"))  # ten seconds later
    call_both()
    assert get(mira).status_code in (200, 204)

    # The canary still detects a limit on everything.
    end_waits()
    store.delete(*store.keys("spotify-canary:*"))
    sandbox.fault(on="api", kind="rate_limited", retry_after=60, times=2)
    retry_after_of(put_cover(mira, "one"))
    assert retry_after_of(get(mira)) in seconds_left(60)


def test_canary_is_sent_once_by_all_processes(
    mira: FlaskClient, another_worker: Flask, sandbox: SandboxClient, store: Store
) -> None:
    sandbox.fault(on="api", kind="rate_limited", retry_after=1)
    assert retry_after_of(put_cover(mira, "one")) == 1
    assert [call["path"] for call in sandbox.calls("/v1/me")] == ["/v1/me"]
    [key] = store.keys("spotify-canary:*")
    assert 0 < store.pttl(key) <= 10_000
    # It is rejected again, in another process, while the canary's result still counts.
    store.delete(*store.keys("spotify-wait:*"))
    sandbox.fault(on="api", kind="rate_limited", retry_after=1)
    assert retry_after_of(put_cover(another_tab(mira, another_worker), "one")) == 1
    assert len(sandbox.calls("/v1/me")) == 1
    assert get(mira).status_code in (200, 204)


def test_canary_without_a_response_blocks_nothing_else(mira: FlaskClient, sandbox: SandboxClient) -> None:
    sandbox.fault(on="command", kind="rate_limited", retry_after=60)
    sandbox.fault(on="me", kind="close", times=None)
    assert retry_after_of(put_cover(mira, "one")) == 60
    sandbox.clear_faults()
    assert get(mira, "me").status_code == 200


def test_unknown_path_does_not_block_known_endpoints(mira: FlaskClient, upstream: Upstream) -> None:
    upstream.status, upstream.headers = 429, {"Retry-After": "60"}
    assert retry_after_of(get(mira, "me/no-such/thing")) == 60
    upstream.status = 200
    assert retry_after_of(get(mira, "me/another/thing")) in seconds_left(60)
    for path in ("me/player", "me", "albums/no/such/thing", "no-such-thing"):
        assert get(mira, path).status_code == 200, path


def test_second_429_is_detected_without_redis(app: Flask) -> None:
    limiter = SpotifyRateLimiter(redis_client("redis://127.0.0.1:1/0"), CLIENT_ID, budget=None)
    rejection = HttpResponse(429, {"retry-after": "60"}, b"")
    assert not limiter.record_429("search", rejection).needs_canary
    assert (limiter.retry_after("me/player"), limiter.retry_after("search") > 50) == (0, True)
    limiter.record_429("me/player", rejection)
    assert limiter.retry_after() > 50
