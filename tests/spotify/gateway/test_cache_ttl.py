"""For how long a response is shared."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.spotify.clients.call import MIN_SECONDS
from app.spotify.gateway import proxy
from tests.helpers.cached_reads import (
    PLAYER,
    Store,
    cache_header,
    cache_headers,
    callers_in,
    entry_keys,
    expire,
    get,
    set_fields,
    start_get,
    stored_times,
)
from tests.helpers.flows import another_tab, slug
from tests.helpers.servers import LONG, eventually
from tests.helpers.upstream import Upstream

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(THREADS="64"),  # slots for all the callers of a test
]


def test_read_is_shared_as_long_as_spotify_allows(
    mira: FlaskClient, upstream: Upstream, store: Store
) -> None:
    allowed = ["max-age=60", "private, max-age=60", "public, max-age=99999999999"]
    forbidden = ["private, max-age=0", "no-store, max-age=60", "no-cache, max-age=60"]
    invalid_values = ["max-age=-5", "max-age=soon", "max-age", '=;,"', ""]
    for number, control in enumerate(allowed + forbidden + invalid_values):
        upstream.headers, path = {"Cache-Control": control}, f"search?q={number}"
        responses = [get(mira, path) for _ in range(2)]
        assert [cache_header(response) for response in responses] == [
            "miss",
            "hit" if control in allowed else "miss",
        ], control
        assert (responses[0].data == responses[1].data) == (control in allowed)
        assert responses[1].headers["Cache-Control"] == "no-store"
    assert 0 < store.pttl(entry_keys(store)[0]) <= 300_000
    assert max(stored_times(store, b"until:")) <= max(stored_times(store, b"at:")) + 300_000
    expire(store, "until")
    assert {cache_header(get(mira, f"search?q={number}")) for number in range(3)} == {"miss"}


def test_read_with_another_status_than_200_is_not_shared(mira: FlaskClient, upstream: Upstream) -> None:
    upstream.headers, upstream.body = {"Cache-Control": "max-age=60", "Retry-After": "1"}, b""
    for upstream.status in (201, 202, 204, 304, 400, 401, 403, 404, 500):
        for _ in range(2):
            response = get(mira, "search?q=a")
            assert (response.status_code, response.headers["X-Cache"]) == (upstream.status, "miss")


def test_missing_permission_is_not_shared(mira: FlaskClient, upstream: Upstream) -> None:
    upstream.body = b""
    for upstream.status in (401, 403):
        assert [get(mira).headers["X-Cache"] for _ in range(2)] == ["miss", "miss"]


def test_poll_is_shared_for_one_second(
    mira: FlaskClient, another_worker: Flask, upstream: Upstream, store: Store
) -> None:
    upstream.headers = {"Cache-Control": "private, max-age=0"}
    paths = [PLAYER, "me/player/currently-playing", "me/player/queue", "me/player?market=SE"]
    for path, upstream.status in zip(paths, (200, 204, 404, 500), strict=True):
        store.delete(*store.keys("shared:*"), "none")
        upstream.headers["Retry-After"] = "1"  # otherwise, a 500 is retried
        upstream.body = b"" if upstream.status == 204 else b"{}"
        first = get(mira, path)
        [until], [at], [following] = (stored_times(store, what) for what in (b"until:", b"at:", b"next:"))
        assert (first.status_code, first.headers["X-Cache"], first.headers["Age"]) == (
            upstream.status,
            "miss",
            "0",
        )
        assert until - at == 1000
        assert at - LONG * 1000 < following - 1000 <= at  # counted from the start of the call
        set_fields(store, b"until:", at + 300_000)
        set_fields(store, b"next:", at + 3_600_000)
        again = get(another_tab(mira, another_worker), path)
        assert (again.status_code, again.headers["X-Cache"], again.data) == (
            upstream.status,
            "hit",
            first.data,
        )


@pytest.mark.settings(GATEWAY_SHARE_SECONDS="0")
def test_share_seconds_of_zero_still_shares_calls_in_progress(
    mira: FlaskClient,
    app: Flask,
    upstream: Upstream,
    pool: ThreadPoolExecutor,
) -> None:
    assert [cache_header(get(mira)) for _ in range(3)] == ["miss"] * 3
    upstream.hold()
    calls = [start_get(pool, mira) for _ in range(4)]
    eventually(lambda: callers_in(app) == 4)
    upstream.release()
    assert cache_headers(calls) == ["miss"] + ["shared"] * 3
    assert len(upstream.calls) == 4


def test_age_header_is_the_age_in_our_cache(mira: FlaskClient, upstream: Upstream, store: Store) -> None:
    upstream.headers = {"Cache-Control": "max-age=60", "Age": "1000"}
    assert get(mira, "search?q=a").headers["Age"] == "0"
    [at] = stored_times(store, b"at:")
    set_fields(store, b"at:", at - 7000)
    assert 7 <= int(get(mira, "search?q=a").headers["Age"]) < 60


def test_fresh_response_is_served_while_the_next_is_fetched(
    mira: FlaskClient,
    app: Flask,
    another_worker: Flask,
    upstream: Upstream,
    store: Store,
    pool: ThreadPoolExecutor,
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    get(mira, "search?q=a")
    expire(store, "next")
    upstream.hold()
    ahead = start_get(pool, mira, "search?q=a")
    upstream.wait_for_held(1)

    for worker in (app, another_worker):
        response = get(another_tab(mira, worker), "search?q=a")
        assert (cache_header(response), response.json) == ("hit", {"call": 1})
    upstream.release()
    assert (cache_header(ahead.result(LONG)), ahead.result().json) == ("miss", {"call": 2})
    assert get(mira, "search?q=a").json == {"call": 2}
    assert len(upstream.calls) == 2


def test_caller_without_a_slot_gets_a_fresh_response(
    mira: FlaskClient, app: Flask, upstream: Upstream, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    get(mira, "search?q=a")
    expire(store, "next")
    bulkhead = app.extensions["backline"].gateway._bulkhead
    with ExitStack() as all_places:
        for _ in range(32):
            bulkhead.acquire(all_places.enter_context(bulkhead.admit(object())))
        response = get(mira, "search?q=a")
        assert (cache_header(response), response.json) == ("hit", {"call": 1})
        expire(store, "until")
        with monkeypatch.context() as hurried:
            hurried.setattr(proxy, "TOTAL_SECONDS", MIN_SECONDS + 0.1)
            assert slug(get(mira, "search?q=a")) == "spotify-unavailable"
    assert get(mira, "search?q=a").json == {"call": 2}  # no leader is left behind
