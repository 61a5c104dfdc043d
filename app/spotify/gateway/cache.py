"""Responses that connections have read recently, in Redis, so that all processes share them.

Each connection has three keys, which belong together:

    shared:{7}          hash; for each read, by a hash of its grant, path, query, and language:
        entry:…                 the response
        at:…, until:…, next:…   when it arrived, until when it is fresh, and when the next fetch is due
        leader:…, waited:…      who is fetching it now, and that another caller waits for it
    shared:{7}:leaders  when each leader's lease expires
    shared:{7}:index    when each entry expires

A leader may store a response only while it is named here. Dropping the keys therefore also revokes that right
from a caller that is fetching one. All times are Redis' own, in milliseconds.

The number of entries and their size are limited. Apart from removing entries, the scripts take no longer for
a full connection than for an empty one.
"""

import hashlib
import logging
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import redis

from app.infra.http_client import HttpResponse
from app.spotify.gateway.leases import LeaseRenewer

log = logging.getLogger(__name__)

# A leader that has not renewed its lease for this long counts as dead.
LEASE_SECONDS = 3.0
# A response is kept this long for callers that wait for it, however short its TTL.
GRACE_SECONDS = 5.0
MAX_TTL_SECONDS = 300
# Larger responses are not stored.
MAX_ENTRY_BYTES = 512 * 1024
# For each connection.
MAX_TOTAL_BYTES, MAX_ENTRIES = 4 * 1024 * 1024, 200

# The status of an entry that tells waiters why there is no response.
FAILED, TOO_LARGE = 0, -1


class CachedResponse(msgspec.Struct):
    """An entry: a response, or with the status `FAILED` or `TOO_LARGE` the reason why there is none."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    retry_after: int | None = None  # seconds; for FAILED


@dataclass(frozen=True)
class Read:
    """One caller's read over one connection."""

    spotify_user_id: int
    name: str
    caller: str

    @classmethod
    def of(cls, spotify_user_id: int, key: str) -> "Read":
        """Create the read of a new caller. Reads with the same `key` share a response."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cls(spotify_user_id, name, secrets.token_hex(8))


class State(Enum):
    """The outcome of a lookup."""

    HIT = b"hit"  # a response
    IN_PROGRESS = b"in_progress"  # another caller is fetching one: look again
    MISS = b"miss"  # no caller is fetching one
    LEADING = b"leading"  # this caller must fetch one, and then `store` or `release` it


@dataclass(frozen=True)
class Lookup:
    """The result of a lookup. A MISS can have an entry that is fresh, but due to be replaced."""

    state: State
    now: int = 0  # ms
    entry: CachedResponse | None = None
    age: int = 0  # seconds


class ResponseCache:
    """Stores responses, and lets one caller at a time fetch (lead) each of them."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._lookup, self._store, self._release, self._renew = (
            client.register_script((Path(__file__).parent / f"cache_{name}.lua").read_text())
            for name in ("lookup", "store", "release", "renew")
        )
        self._leases = LeaseRenewer(self._renew_lease)

    def get(self, read: Read, since: int | None = None) -> Lookup:
        """Look up a read. Returns HIT, IN_PROGRESS, or MISS.

        `since` is `now` of the caller's first lookup: any response that has arrived since then is a HIT.

        Raises:
            redis.RedisError: Redis does not work.
        """
        return self._look_up(read, since, lead=False)

    def lead(self, read: Read, since: int) -> Lookup:
        """Become the leader (LEADING), unless there is a response (HIT) or another leader (IN_PROGRESS).

        Raises:
            redis.RedisError: Redis does not work.
        """
        return self._look_up(read, since, lead=True)

    def renewed_lease(self, read: Read) -> AbstractContextManager[None]:
        """Keep the leader's lease alive while the block runs."""
        return self._leases.hold(read)

    def store(self, read: Read, response: HttpResponse, *, started: int, ttl: float) -> None:
        """Store a leader's response for `ttl` seconds. `started` is `now` of its LEADING lookup."""
        if len(response.body) > MAX_ENTRY_BYTES:
            self._store_entry(read, CachedResponse(TOO_LARGE), started, 0)
        else:
            entry = CachedResponse(response.status, response.headers, response.body)
            self._store_entry(read, entry, started, ttl)

    def store_failure(self, read: Read, retry_after: int | None, *, started: int) -> None:
        """Tell the waiters that the leader got no response."""
        self._store_entry(read, CachedResponse(FAILED, retry_after=retry_after), started, 0)

    def release(self, read: Read) -> None:
        """Stop leading, so that a waiter can take over."""
        with self._best_effort():
            self._release(*self._leader_arguments(read))

    def drop(self, spotify_user_id: int) -> None:
        """Delete all responses of a connection, because a write may have changed them or the grant is new."""
        with self._best_effort():
            self._client.unlink(*_keys(spotify_user_id))

    def _look_up(self, read: Read, since: int | None, *, lead: bool) -> Lookup:
        keys, arguments = self._leader_arguments(read)
        arguments[2:2] = ["" if since is None else since]
        arguments += [MAX_TTL_SECONDS * 1000, int(lead)]
        try:
            found: Any = self._lookup(keys, arguments)
        except redis.ResponseError:  # the stored data is not ours
            self._client.unlink(*_keys(read.spotify_user_id))
            found = self._lookup(keys, arguments)
        state, *rest = found
        if State(state) is State.HIT:
            return Lookup(State.HIT, 0, _decode(rest[0]), rest[1] // 1000)
        now, *fresh = rest
        if fresh:
            return Lookup(State(state), now, _decode(fresh[0]), fresh[1] // 1000)
        return Lookup(State(state), now)

    def _store_entry(self, read: Read, entry: CachedResponse, started: int, ttl: float) -> None:
        times = [int(min(ttl, MAX_TTL_SECONDS) * 1000), started, int(GRACE_SECONDS * 1000)]
        limits = [MAX_ENTRIES, MAX_TOTAL_BYTES, MAX_TTL_SECONDS * 1000]
        arguments: list[Any] = [read.name, read.caller, msgspec.msgpack.encode(entry), *times, *limits]
        keys = _keys(read.spotify_user_id)
        with self._best_effort():
            try:
                self._store(keys, arguments)
            except redis.ResponseError:  # the stored data is not ours
                self._client.unlink(*keys)
                raise

    def _renew_lease(self, read: Read) -> None:
        with self._best_effort():
            self._renew(*self._leader_arguments(read))

    def _leader_arguments(self, read: Read) -> tuple[list[str], list[Any]]:
        return _keys(read.spotify_user_id)[:2], [read.name, read.caller, int(LEASE_SECONDS * 1000)]

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        """Log Redis errors instead of raising them: a caller must not lose its response because of one."""
        try:
            yield
        except redis.RedisError as error:
            log.warning("response_cache_failed", extra={"reason": type(error).__name__})


def _keys(spotify_user_id: int) -> list[str]:
    """Return the keys of the entries, leaders, and index. The braces put them into one slot of a cluster."""
    key = f"shared:{{{spotify_user_id}}}"
    return [key, f"{key}:leaders", f"{key}:index"]


def _decode(encoded: bytes) -> CachedResponse:
    try:
        return msgspec.msgpack.decode(encoded, type=CachedResponse)
    except msgspec.MsgspecError:  # tampered with, or from another release
        return CachedResponse(FAILED)
