"""Responses that connections have read recently, in Redis, so that all processes share them.

Each connection has three keys, which belong together:

    shared:{7}          hash; for each read, by a hash of its grant, path, query, language, and ETags:
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
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import redis

from app.infra import redis_scripts
from app.infra.http_client import HttpResponse
from app.infra.redis_round_trip import Command
from app.infra.redis_scripts import Script
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
        # Unique, but no secret: os.urandom would let other threads run, and wait for them.
        return cls(spotify_user_id, name, f"{random.getrandbits(64):016x}")


class State(Enum):
    """The outcome of a lookup."""

    HIT = b"hit"  # a response
    IN_PROGRESS = b"in_progress"  # another caller is fetching one: look again
    MISS = b"miss"  # no caller is fetching one
    LEADING = b"leading"  # this caller must fetch one, and then `store` or `release` it


@dataclass(frozen=True)
class Lookup:
    """The result of a lookup. A MISS or LEADING can have an entry that is fresh, but due to be replaced."""

    state: State
    now: int = 0  # ms
    entry: CachedResponse | None = None
    age: int = 0  # seconds


class ResponseCache:
    """Stores responses, and lets one caller at a time fetch (lead) each of them."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._lookup, self._store, self._release, self._renew = (
            Script(Path(__file__).parent / f"cache_{name}.lua")
            for name in ("lookup", "store", "release", "renew")
        )
        self._leases = LeaseRenewer(self._renew_lease)

    def lookup_command(self, read: Read, *, since: int | None = None, lead: bool) -> Command:
        """Return the command that looks up a read. `read_lookup` reads the reply.

        `since` is `now` of the caller's first lookup: any response that has arrived since then is a HIT. With
        `lead`, the caller becomes the leader (LEADING) instead of getting a MISS.
        """
        times = [int(LEASE_SECONDS * 1000), MAX_TTL_SECONDS * 1000]
        keys = _keys(read.spotify_user_id)[:2]
        moment = "" if since is None else since
        return self._lookup.command(keys, read.name, read.caller, moment, *times, int(lead))

    def read_lookup(self, read: Read, command: Command, reply: Any) -> Lookup:
        """Return what the reply to a `lookup_command` says.

        Raises:
            redis.RedisError: Redis does not work.
        """
        if isinstance(reply, redis.ResponseError):  # the stored data is not ours
            unlink: Command = ("UNLINK", *_keys(read.spotify_user_id))
            _, reply = redis_scripts.run(self._client, unlink, command)
            if isinstance(reply, redis.ResponseError):
                raise reply
        state, *rest = reply
        if State(state) is State.HIT:
            return Lookup(State.HIT, 0, _decode(rest[0]), rest[1] // 1000)
        now, *fresh = rest
        if fresh:
            return Lookup(State(state), now, _decode(fresh[0]), fresh[1] // 1000)
        return Lookup(State(state), now)

    def get(self, read: Read, since: int | None = None) -> Lookup:
        """Look up a read. Returns HIT, IN_PROGRESS, or MISS.

        Raises:
            redis.RedisError: Redis does not work.
        """
        command = self.lookup_command(read, since=since, lead=False)
        return self.read_lookup(read, command, *redis_scripts.run(self._client, command))

    def renewed_lease(self, read: Read) -> AbstractContextManager[None]:
        """Keep the leader's lease alive while the block runs."""
        return self._leases.hold(read)

    def store(
        self,
        read: Read,
        response: HttpResponse,
        *,
        started: int,
        ttl: float,
        further: Sequence[Command] = (),
    ) -> None:
        """Store a leader's response for `ttl` seconds. `started` is `now` of its LEADING lookup.

        The `further` commands share the round trip.
        """
        if len(response.body) > MAX_ENTRY_BYTES:
            self._store_entry(read, CachedResponse(TOO_LARGE), started, 0, further)
        else:
            entry = CachedResponse(response.status, response.headers, response.body)
            self._store_entry(read, entry, started, ttl, further)

    def store_failure(
        self, read: Read, retry_after: int | None, *, started: int, further: Sequence[Command] = ()
    ) -> None:
        """Tell the waiters that the leader got no response. The `further` commands share the round trip."""
        self._store_entry(read, CachedResponse(FAILED, retry_after=retry_after), started, 0, further)

    def release(self, read: Read, further: Sequence[Command] = ()) -> None:
        """Stop leading, so that a waiter can take over. The `further` commands share the round trip."""
        self._run(self._leader_command(self._release, read), *further)

    def drop_command(self, spotify_user_id: int) -> Command:
        """Return the command that does what `drop` does."""
        return ("UNLINK", *_keys(spotify_user_id))

    def drop(self, spotify_user_id: int, further: Sequence[Command] = ()) -> None:
        """Delete all responses of a connection, because a write may have changed them or the grant is new.

        The `further` commands share the round trip.
        """
        self._run(self.drop_command(spotify_user_id), *further)

    def _store_entry(
        self, read: Read, entry: CachedResponse, started: int, ttl: float, further: Sequence[Command]
    ) -> None:
        times = [int(min(ttl, MAX_TTL_SECONDS) * 1000), started, int(GRACE_SECONDS * 1000)]
        limits = [MAX_ENTRIES, MAX_TOTAL_BYTES, MAX_TTL_SECONDS * 1000]
        keys = _keys(read.spotify_user_id)
        encoded = msgspec.msgpack.encode(entry)
        store = self._store.command(keys, read.name, read.caller, encoded, *times, *limits)
        if isinstance(self._run(store, *further), redis.ResponseError):  # the stored data is not ours
            self._run(self.drop_command(read.spotify_user_id))

    def _renew_lease(self, read: Read) -> None:
        self._run(self._leader_command(self._renew, read))

    def _leader_command(self, script: Script, read: Read) -> Command:
        lease = int(LEASE_SECONDS * 1000)
        return script.command(_keys(read.spotify_user_id)[:2], read.name, read.caller, lease)

    def _run(self, *commands: Command) -> Any:
        """Send commands, and return the first one's reply, or an error, which is logged.

        A caller must not lose its response because of one.
        """
        try:
            reply = redis_scripts.run(self._client, *commands)[0]
        except redis.RedisError as error:
            reply = error
        if isinstance(reply, redis.RedisError):
            log.warning("response_cache_failed", extra={"reason": type(reply).__name__})
        return reply


def _keys(spotify_user_id: int) -> list[str]:
    """Return the keys of the entries, leaders, and index. The braces put them into one slot of a cluster."""
    key = f"shared:{{{spotify_user_id}}}"
    return [key, f"{key}:leaders", f"{key}:index"]


def _decode(encoded: bytes) -> CachedResponse:
    try:
        return msgspec.msgpack.decode(encoded, type=CachedResponse)
    except msgspec.MsgspecError:  # tampered with, or from another release
        return CachedResponse(FAILED)
