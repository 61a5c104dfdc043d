"""Simultaneous identical reads become one call, and a person gets only their own responses."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient

from app.errors import SpotifyNotConnected
from app.infra.http_client import HttpResponse
from app.spotify.tokens.refresh import GrantEnded
from app.spotify.tokens.service import TokenService
from tests.helpers.cached_reads import (
    PLAYER,
    V1,
    Store,
    another_person,
    cache_header,
    cache_headers,
    callers_in,
    expire,
    expire_leases,
    get,
    http_headers,
    player_calls,
    start_get,
)
from tests.helpers.flows import login, register, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, Server, eventually
from tests.helpers.upstream import Upstream

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.settings(THREADS="64"),  # slots for all the callers of a test
]
StartServer = Callable[..., AbstractContextManager[Server]]


def test_simultaneous_reads_become_one_call(
    mira: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.fault(on="player", kind="park")
    calls = [start_get(pool, mira, worker=worker) for worker in (app, another_worker) for _ in range(8)]
    eventually(lambda: callers_in(app) == callers_in(another_worker) == 8)
    sandbox.release()

    responses = [one.result(LONG) for one in calls]
    assert cache_headers(calls) == ["miss"] + ["shared"] * 15
    assert len({(response.status_code, response.data, response.content_type) for response in responses}) == 1
    assert player_calls(sandbox) == 1


def test_reads_of_other_paths_or_people_are_not_shared(
    mira: FlaskClient, jonas: FlaskClient, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.clear_calls()
    sandbox.fault(on="api", kind="park", times=None)
    paths = ["me", "me?x=1", "me?x=2", "me/player/devices"]
    calls = [(who, path, start_get(pool, who, path)) for who in (mira, jonas) for path in paths]
    sandbox.wait_for_held(8)
    sandbox.clear_faults()

    assert {cache_header(one.result(LONG)) for _, _, one in calls} == {"miss"}
    whose = {path: [one.result(LONG).json["id"] for _, at, one in calls if at == path] for path in paths[:3]}
    assert set(map(tuple, whose.values())) == {("mira_t_42", another_person(sandbox))}
    for who, person in ((mira, "mira_t_42"), (jonas, another_person(sandbox))):
        assert get(who, "me").json["id"] == person
    assert len(sandbox.calls()) == 10


def test_failure_is_shared_with_waiters_but_not_with_later_callers(
    mira: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.fault(on="player", kind="timeout")  # the call, and its retry
    sandbox.fault(on="player", kind="close")
    calls = [start_get(pool, mira) for _ in range(6)]
    eventually(lambda: callers_in(app) == 6 and sandbox.held() == 1)
    sandbox.release()

    rejections = [one.result(LONG) for one in calls]
    assert {(response.status_code, slug(response)) for response in rejections} == {
        (503, "spotify-unavailable")
    }
    assert all(int(response.headers["Retry-After"]) >= 1 for response in rejections)
    assert player_calls(sandbox) == 2
    assert cache_header(get(mira)) == "miss"


def test_error_response_is_shared_unchanged(
    mira: FlaskClient, app: Flask, upstream: Upstream, pool: ThreadPoolExecutor
) -> None:
    upstream.status, upstream.body = 503, b"upstream connect error"
    upstream.headers = {"Content-Type": "text/plain", "Retry-After": "7"}
    upstream.hold()
    calls = [start_get(pool, mira, "me/playlists") for _ in range(6)]
    eventually(lambda: callers_in(app) == 6)
    upstream.release()

    for one in calls:
        response = one.result(LONG)
        assert (response.status_code, response.data) == (503, b"upstream connect error")
        assert (response.content_type, response.headers["Retry-After"]) == ("text/plain", "7")
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
    """Each browser needs its own consent: an `authorize_url` is valid in one session only."""
    login(elsewhere := new_client(), register(mira)["username"])  # as the same person
    released = threading.Event()

    def ended(*_: object, **__: object) -> None:
        assert released.wait(LONG)
        raise GrantEnded

    monkeypatch.setattr(TokenService, "access_token_for", ended)
    calls = [start_get(pool, who) for who in (mira, elsewhere) for _ in range(3)]
    eventually(lambda: callers_in(app) == 6)
    released.set()

    responses = [one.result(LONG) for one in calls]
    assert {slug(response) for response in responses} == {"spotify-reauthorization-required"}
    urls = [response.json["authorize_url"] for response in responses]
    assert set(urls[:3]).isdisjoint(urls[3:])


def test_missing_connection_is_not_shared_with_waiters(
    mira: FlaskClient, app: Flask, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, first = threading.Event(), threading.Lock()
    access_token_for = TokenService.access_token_for

    def after_release(*arguments: Any, **options: Any) -> Any:
        if first.acquire(blocking=False):
            assert released.wait(LONG)
            raise SpotifyNotConnected
        return access_token_for(*arguments, **options)

    monkeypatch.setattr(TokenService, "access_token_for", after_release)
    calls = [start_get(pool, mira) for _ in range(4)]
    eventually(lambda: callers_in(app) == 4)
    released.set()

    statuses = sorted(one.result(LONG).status_code for one in calls)
    assert statuses[3] == 409
    assert max(statuses[:3]) <= 204


def test_wait_that_starts_during_a_call_does_not_affect_its_waiters(
    mira: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    sandbox.fault(on="player", kind="park")
    sandbox.fault(on="player", kind="rate_limited", retry_after=40, times=None)
    calls = [start_get(pool, mira) for _ in range(3)]
    eventually(lambda: callers_in(app) == 3 and sandbox.held() == 1)
    app.extensions["backline"].rate_limiter.block_all(HttpResponse(429, {"retry-after": "40"}, b""))
    sandbox.release()

    assert cache_headers(calls) == ["miss", "shared", "shared"]  # the call was in progress
    expire(app.extensions["backline"].redis, "until")
    rejected = get(mira)
    assert (rejected.status_code, slug(rejected)) == (429, "spotify-rate-limited")
    assert rejected.json["error"] == {"status": 429, "message": "API rate limit exceeded"}


@pytest.mark.processes
def test_waiter_takes_over_from_a_killed_leader(
    mira: FlaskClient,
    app: Flask,
    server: StartServer,
    sandbox: SandboxClient,
    store: Store,
    pool: ThreadPoolExecutor,
) -> None:
    with server(workers=1) as api:
        sandbox.fault(on="player", kind="park")
        lost = pool.submit(requests.get, f"{api.url}{V1}/{PLAYER}", headers=http_headers(mira), timeout=LONG)
        sandbox.wait_for_held(1)
        calls = [start_get(pool, mira) for _ in range(5)]
        eventually(lambda: callers_in(app) == 5)
        assert player_calls(sandbox) == 1
        api.kill_worker()
        assert isinstance(lost.exception(LONG), requests.ConnectionError)
        expire_leases(store)

        responses = [one.result(LONG) for one in calls]

    assert cache_headers(calls) == ["miss"] + ["shared"] * 4
    assert {response.status_code for response in responses} <= {200, 204}
    assert player_calls(sandbox) == 2
