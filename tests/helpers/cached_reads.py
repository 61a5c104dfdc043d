"""Reads through the gateway, and the entries of its cache in Redis."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra import redis_scripts
from app.infra.database import reading
from app.infra.http_client import HttpResponse
from app.infra.redis_client import redis_client
from app.models import AccessToken, SpotifyUser
from app.resilience.bulkhead import Bulkhead
from app.spotify.clients.call import Call
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.gateway.cache import Lookup, Read, ResponseCache
from app.spotify.gateway.proxy import Gateway, GatewayResponse
from config import Config
from tests.helpers.flows import another_tab
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG

# A Redis client. The type redis.Redis mixes synchronous and asynchronous results.
Store = Any
PLAYER, V1 = "me/player", "/api/spotify/v1"


def another_person(sandbox: SandboxClient) -> str:
    return next(str(person["id"]) for person in sandbox.people() if person["id"] != "mira_t_42")


def get(tab: FlaskClient, path: str = PLAYER) -> TestResponse:
    return tab.get(f"{V1}/{path}")


def start_get(
    pool: ThreadPoolExecutor, client: FlaskClient, path: str = PLAYER, worker: Flask | None = None
) -> "Future[TestResponse]":
    """Start a call from another tab."""
    return pool.submit(get, another_tab(client, worker), path)


def callers_in(app: Flask) -> int:
    """Return how many callers in a process fetch a response, or wait for one."""
    return len(app.extensions["backline"].gateway._bulkhead._admissions)


def cache_header(response: TestResponse) -> str:
    assert response.status_code in (200, 204), response.text
    return response.headers["X-Cache"]


def cache_headers(responses: list["Future[TestResponse]"]) -> list[str]:
    return sorted(cache_header(response.result(LONG)) for response in responses)


def player_calls(sandbox: SandboxClient) -> int:
    return len(sandbox.calls(path="/v1/me/player"))


def expire(store: Store, name: str) -> None:
    """Move a time of all stored responses, such as `until`, into the past."""
    set_fields(store, name.encode(), 0)


def expire_leases(store: Store) -> None:
    """Expire the leases of all leaders."""
    for key in store.keys("shared:*:leaders"):
        for read in store.zrange(key, 0, -1):
            store.zadd(key, {read: 0})


def entry_keys(store: Store) -> list[bytes]:
    return [key for key in store.keys("shared:*") if key.endswith(b"}")]


def stored_fields(store: Store) -> dict[bytes, bytes]:
    """Return the fields of all hashes that store responses."""
    found: dict[bytes, bytes] = {}
    for key in entry_keys(store):
        found |= store.hgetall(key)
    return found


def http_headers(client: FlaskClient) -> dict[str, str]:
    """Return headers that identify this person in another process."""
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    return {"X-Requested-With": "test", "Cookie": f"backline_session={cookie.value}"}


def stored_times(store: Store, prefix: bytes) -> list[int]:
    return [int(value) for field, value in stored_fields(store).items() if field.startswith(prefix)]


def set_fields(store: Store, prefix: bytes, value: int) -> None:
    for key in entry_keys(store):
        for field in store.hkeys(key):
            if field.startswith(prefix):
                store.hset(key, field, value)


def milliseconds(store: Store) -> int:
    seconds, micro = store.time()
    return int(seconds * 1000 + micro // 1000)


def write(client: FlaskClient, path: str = "me/player/pause") -> TestResponse:
    return client.put(f"{V1}/{path}", json={})


def connection_id(app: Flask) -> int:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(SpotifyUser.id)).one()


class Fetch:
    """A call to Spotify that waits until `finish`."""

    def __init__(self, body: bytes, *, raises: Exception | None = None) -> None:
        self._response = HttpResponse(200, {}, body)
        self._raises = raises
        self._started, self._may_end = threading.Event(), threading.Event()

    def __call__(self) -> HttpResponse:
        self._started.set()
        assert self._may_end.wait(LONG)
        if self._raises is not None:
            raise self._raises
        return self._response

    def wait_until_started(self) -> None:
        assert self._started.wait(LONG)

    def finish(self) -> "Fetch":
        self._may_end.set()
        return self


def unexpected_call() -> HttpResponse:
    raise AssertionError("one call too many")


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


def read(gateway: Gateway, target: str, fetch: Callable[[], HttpResponse], *, ttl: int) -> GatewayResponse:
    """Read through the cache and bulkhead of a gateway, with a stub for the connection."""
    tokens, web_api = cast("Any", StubTokens()), cast("Any", StubWebApi(fetch, ttl))
    shared = (gateway._limits, gateway._cache, gateway._bulkhead)
    one = Gateway(gateway._client, tokens, web_api, *shared, poll_ttl=ttl)
    connection = cast("Any", SpotifyUser(id=7, token=AccessToken(grant_id="grant")))
    with one.prepare(Call("GET", target)) as prepared:
        return one.forward(prepared, connection)


def gateway_on(redis_url: str, config: Config) -> Gateway:
    """Return the gateway of another process."""
    nothing, client = cast("Any", None), redis_client(redis_url)
    cache, limits = ResponseCache(client), ClientLimitsRegistry(client, config)
    return Gateway(client, nothing, nothing, limits, cache, Bulkhead(8, 6), poll_ttl=0)


def lead(cache: ResponseCache, read: Read) -> Lookup:
    """Look up a read, and become its leader if there is no response and no other leader."""
    command = cache.lookup_command(read, lead=True)
    return cache.read_lookup(read, command, *redis_scripts.run(cache._client, command))


def immediate(body: bytes) -> Fetch:
    """Return a call that responds immediately."""
    return Fetch(body).finish()
