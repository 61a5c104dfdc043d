"""What deletes shared responses: writes, disconnecting, and invalid data in Redis."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from tests.helpers.cached_reads import (
    V1,
    Store,
    cache_header,
    connection_id,
    entry_keys,
    expire,
    expire_leases,
    get,
    http_headers,
    start_get,
    stored_fields,
    write,
)
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD, another_tab, connect, register, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, Server, eventually
from tests.helpers.upstream import Upstream

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    # Slots for all the callers of a test, and polls that are shared however long it takes.
    pytest.mark.settings(THREADS="64", GATEWAY_SHARE_SECONDS="60"),
]
StartServer = Callable[..., AbstractContextManager[Server]]


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
        assert [cache_header(get(mira, "search?q=a")) for _ in range(2)] == ["miss", "hit"]
        upstream.status, upstream.body = status, b""
        assert write(mira).status_code == status


def test_write_without_a_response_drops_responses(mira: FlaskClient, sandbox: SandboxClient) -> None:
    assert [cache_header(get(mira)) for _ in range(2)] == ["miss", "hit"]
    sandbox.fault(on="player", kind="close", after_effect=True)
    assert write(mira).status_code == 409
    assert cache_header(get(mira)) == "miss"


@pytest.mark.processes
def test_write_drops_responses_even_if_its_process_dies(
    mira: FlaskClient, server: StartServer, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    with server(workers=1, SPOTIFY_API_URL=upstream.url) as api:

        def call(method: str, path: str) -> requests.Response:
            return requests.request(method, f"{api.url}{V1}/{path}", headers=http_headers(mira), timeout=LONG)

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
    before = start_get(pool, mira, "search?q=a")
    upstream.wait_for_held(1)
    changing = pool.submit(write, another_tab(mira))
    upstream.wait_for_held(2)
    app.extensions["backline"].response_cache.drop(connection_id(app))  # as the write does when it ends
    upstream.release()

    assert cache_header(before.result(LONG)) == "miss"
    assert changing.result(LONG).status_code == 200
    after = get(mira, "search?q=a")
    assert (cache_header(after), after.json) == ("miss", {"call": 3})


@pytest.mark.parametrize("way", ["disconnecting", "deleting the account"])
def test_deleted_connection_has_no_stored_responses(
    mira: FlaskClient,
    upstream: Upstream,
    store: Store,
    pool: ThreadPoolExecutor,
    way: str,
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    if way == "deleting the account":
        register(mira)
    get(mira, "search?q=a")
    get(mira)
    assert stored_fields(store)
    upstream.hold()
    late = start_get(pool, mira, "me/playlists")
    upstream.wait_for_held(1)

    if way == "disconnecting":
        revoked = mira.delete("/api/spotify")
    else:
        revoked = mira.delete("/api/user", json={"password": PASSWORD})
    assert revoked.status_code == 204

    assert store.keys("shared:*") == []
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
    assert [cache_header(get(mira, "search?q=a")) for _ in range(2)] == ["miss", "hit"]


def test_cache_survives_garbage_in_redis(mira: FlaskClient, upstream: Upstream, store: Store) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    for junk in ("a text", "a list", "entry", "until", "next", "bytes", "leaders", "index", "at"):
        assert [cache_header(get(mira, "search?q=a")) for _ in range(2)] == ["miss", "hit"]
        [key] = entry_keys(store)
        name = next(name for name in stored_fields(store) if name.startswith(b"until:")).partition(b":")[2]
        if junk == "a text":
            store.set(key, "junk")
        elif junk == "a list":
            store.delete(key)
            store.rpush(key, "junk")
        elif junk == "bytes":
            store.hset(key, junk, b"\xff junk")
            expire(store, "until")
        elif junk in ("leaders", "index"):
            store.set(key + b":" + junk.encode(), "junk")
            expire(store, "until")
            store.hset(key, b"leader:" + name, "somebody")
        else:
            store.hset(key, junk.encode() + b":" + name, b"\xff junk")

        response = get(mira, "search?q=a")
        assert response.status_code in (200, 503), junk
        if response.status_code == 503:
            assert slug(response) in ("service-unavailable", "spotify-unavailable")
        assert write(mira).status_code == 200  # which drops it


def test_response_is_returned_if_redis_fails_during_the_call(
    redis_proxy: FaultProxy, mira: FlaskClient, upstream: Upstream, store: Store, pool: ThreadPoolExecutor
) -> None:
    upstream.headers = {"Cache-Control": "max-age=60"}
    for call in (get, write):
        upstream.hold()
        reading = pool.submit(call, another_tab(mira))
        upstream.wait_for_held(1)
        redis_proxy.refuse()
        upstream.release()
        assert reading.result(LONG).status_code == 200
        assert slug(get(mira)) == "service-unavailable"
        redis_proxy.restore()
        expire_leases(store)  # which could not be released
        eventually(lambda: get(mira).status_code == 200)


def test_session_that_has_ended_drops_no_responses_again(mira: FlaskClient, upstream: Upstream) -> None:
    """A write drops responses in the round trip that loads its session, if the process remembers that."""
    upstream.headers = {"Cache-Control": "max-age=60"}
    ended = another_tab(mira)
    register(mira, "mira")  # with a new session
    assert slug(write(ended)) == "spotify-not-connected"
    assert cache_header(get(mira, "search?q=a")) == "miss"

    assert slug(write(ended)) == "spotify-not-connected"

    assert cache_header(get(mira, "search?q=a")) == "hit"
