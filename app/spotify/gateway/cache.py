"""What connections have read lately, in Redis, so that all processes share it.

Three keys for each connection, which go together:

    shared:{7}          hash; for each read, by a hash of its grant, path, query and language:
        entry:…                 the response
        at:…, until:…, next:…   when it came, until when it is served, from when on the next may be fetched
        leader:…, waited:…      who is asking Spotify now, and that another caller waits for it
    shared:{7}:leaders  until when each leader is believed to be at work
    shared:{7}:index    when each entry goes

A leader may store its response only while it is named here. So dropping the keys also takes that right
from whoever is asking Spotify at the time. All times are Redis' own, in milliseconds.

The number of entries and their bytes are limited, and the scripts take no longer for a full connection
than for an empty one, apart from the entries that they remove.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import redis

log = logging.getLogger(__name__)

# How long a leader is believed to be at work without a word. It says one every second.
LEASE_SECONDS, BEAT_SECONDS = 3.0, 1.0
# A response is kept for those who wait for it, however short its life.
GRACE_SECONDS = 5.0
# Longest life of an entry.
MAX_TTL_SECONDS = 300
# Larger responses are not stored. Of one connection's, so much is kept.
MAX_BYTES, MAX_BYTES_OF_ONE, MAX_ENTRIES_OF_ONE = 512 * 1024, 4 * 1024 * 1024, 200

# How a read may have ended without a response to share.
FAILED, TOO_LARGE = 0, -1


class CachedResponse(msgspec.Struct):
    """How a read ended, for all who share it: with a response, or as `status` says without one."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    retry_after: int | None = None  # seconds, of a failure


@dataclass(frozen=True)
class Read:
    """One read of one connection by one caller."""

    connection: int
    name: str
    caller: str

    @classmethod
    def of(cls, connection: int, key: str) -> "Read":
        """Make a new caller's. `key` is what makes two reads the same."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cls(connection, name, secrets.token_hex(8))


@dataclass(frozen=True)
class Found:
    """What a look at the cache has shown: a hit, or that this caller is to fetch it, or to wait.

    `response` may also come with `lead`: it is still good.
    """

    kind: Literal["hit", "lead", "wait"]
    now: int  # ms
    response: CachedResponse | None = None
    age: int = 0  # s


class ResponseCache:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._join, self._store, self._release, self._renew = (
            client.register_script((Path(__file__).parent / f"cache_{name}.lua").read_text())
            for name in ("join", "store", "release", "renew")
        )

    def join(self, read: Read, since: int | None = None) -> Found:
        """Look the read up. Whoever is told to lead has to `store` or `release` it in the end.

        `since` is when this caller first looked: it takes any response that has come after that.

        Raises:
            redis.RedisError
        """
        try:
            return self._look_up(read, since)
        except redis.ResponseError:  # what is stored there makes no sense
            self._client.unlink(*_keys(read.connection))
            return self._look_up(read, since)

    def _look_up(self, read: Read, since: int | None) -> Found:
        found: Any = self._join(
            _keys(read.connection)[:2],
            [
                read.name,
                read.caller,
                "" if since is None else since,
                int(LEASE_SECONDS * 1000),
                MAX_TTL_SECONDS * 1000,
            ],
        )
        kind, *rest = found
        if kind == b"hit":
            return Found("hit", 0, _decoded(rest[0]), rest[1] // 1000)
        if kind == b"wait":
            return Found("wait", rest[0])
        now, *good = rest
        return Found("lead", now, _decoded(good[0]) if good else None, good[1] // 1000 if good else 0)

    def store(self, read: Read, response: CachedResponse, *, asked: int, life: float) -> None:
        """Store what a leader got; it began to lead when it `asked`, and may be served for `life` seconds."""
        times = [int(min(life, MAX_TTL_SECONDS) * 1000), asked, int(GRACE_SECONDS * 1000)]
        limits = [MAX_ENTRIES_OF_ONE, MAX_BYTES_OF_ONE, MAX_TTL_SECONDS * 1000]
        encoded = msgspec.msgpack.encode(response)
        self._quietly(
            lambda: self._store(_keys(read.connection), [read.name, read.caller, encoded, *times, *limits]),
            read.connection,
        )

    def release(self, read: Read) -> None:
        """Let another caller lead."""
        self._quietly(lambda: self._release(_keys(read.connection)[:2], self._about(read)))

    def renew(self, read: Read) -> None:
        """Say that the leader is still at work."""
        self._quietly(lambda: self._renew(_keys(read.connection)[:2], self._about(read)))

    def drop(self, connection: int) -> None:
        """Forget what the connection has read: it has written something, has consented again, or is gone."""
        self._quietly(lambda: self._client.unlink(*_keys(connection)))

    def _about(self, read: Read) -> list[str | int]:
        return [read.name, read.caller, int(LEASE_SECONDS * 1000)]

    def _quietly(self, work: Callable[[], object], connection: int | None = None) -> None:
        """Do it if possible: a caller that has its response must not lose it because of Redis."""
        try:
            work()
        except redis.RedisError as error:
            log.warning("sharing_failed", extra={"reason": type(error).__name__})
            if connection is not None and isinstance(error, redis.ResponseError):
                self.drop(connection)  # what is stored there makes no sense


def _keys(connection: int) -> list[str]:
    """Entries, leaders, index. The braces keep them together in a cluster."""
    key = f"shared:{{{connection}}}"
    return [key, f"{key}:leaders", f"{key}:index"]


def _decoded(encoded: bytes) -> CachedResponse:
    try:
        return msgspec.msgpack.decode(encoded, type=CachedResponse)
    except msgspec.MsgspecError:  # tampered with, or of another release
        return CachedResponse(FAILED)
