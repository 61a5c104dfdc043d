"""The indexes by which people list and end their sessions.

An index grants nothing. The permissions of a session depend on its own `epoch` and `grant_id`
(`app.web.access`, `app.spotify.session_connection`).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher
from app.infra.redis_round_trip import Command, values_of
from app.web.sessions import metrics
from app.web.sessions.data import CLOCK_SKEW_SECONDS, SessionData, decode
from config import Config

# For each index. If there are more, the oldest end.
MAX_SESSIONS = 100
# A session is in its index before it is stored, and should be stored by then.
YOUNG_SECONDS = 60
_SESSION_KEY = re.compile(rb"session:[0-9a-f]{64}")


@dataclass(frozen=True)
class ListedSession:
    """A session as its owner sees it. `id` identifies it and cannot be used to sign in."""

    id: str
    current: bool
    created_at: datetime
    last_seen_at: datetime
    ip: str
    user_agent: str


class SessionIndex:
    """Sorted sets in Redis of the keys of sessions, one for each account and each grant.

    A key's score is the time at which its session ends at the latest.
    """

    def __init__(self, client: redis.Redis, cipher: RedisCipher, config: Config) -> None:
        self._client = client
        self._cipher = cipher
        self._idle = timedelta(seconds=config.session_idle_seconds)
        self._max_seconds = config.session_max_seconds

    def add_commands(self, index: str, key: str, created_at: float) -> list[Command]:
        """Return the commands that add a session to an index. Send them before it is stored.

        Otherwise, there could be a session that its owner cannot see.
        """
        return [("ZADD", index, created_at + self._max_seconds, key), ("EXPIRE", index, self._max_seconds)]

    def remove(self, index: str, key: str) -> None:
        """Remove a session that has ended, or that has moved to another index."""
        self._client.zrem(index, key)

    def list_sessions(self, indexes: Iterable[str], *, epoch: int | None, own: str) -> list[ListedSession]:
        """List the live sessions of an account that have this epoch, most recently used first.

        `own` is the key of the request's session.
        """
        sessions = [
            self._describe(key, data, milliseconds_left, own)
            for index in indexes
            for key, data, milliseconds_left in self._read(index)
            if data.index == index and data.account_epoch == epoch
        ]
        return sorted(sessions, key=lambda listed: listed.last_seen_at, reverse=True)

    def end(self, indexes: Iterable[str], selects: Callable[[str], bool]) -> int:
        """End the sessions whose keys `selects` accepts. Returns how many there were."""
        return sum(self._end(index, [key for key in self.keys(index) if selects(key)]) for index in indexes)

    def end_oldest(self, index: str) -> None:
        """End the sessions beyond `MAX_SESSIONS`."""
        self._remove_expired(index)
        self._end(index, self.keys(index)[:-MAX_SESSIONS])

    def _end(self, index: str, keys: list[str]) -> int:
        if not keys:
            return 0
        commands: list[Command] = [("DEL", key) for key in keys]
        ended: int = sum(values_of(self._client, [*commands, ("ZREM", index, *keys)])[:-1])
        metrics.count_ended(ended)
        return ended

    def _read(self, index: str) -> list[tuple[str, SessionData, int]]:
        """Read the sessions of an index, with the milliseconds until each times out."""
        self._remove_expired(index)
        keys = self.keys(index)
        commands: list[Command] = [(name, key) for key in keys for name in ("GET", "PTTL")]
        replies = values_of(self._client, commands) if commands else []
        sessions = []
        for key, raw, milliseconds_left in zip(keys, replies[::2], replies[1::2], strict=True):
            data = decode(self._cipher, key, raw) if raw is not None else None
            if data is None:
                self._remove_ended(index, key)
            else:
                sessions.append((key, data, milliseconds_left))
        return sessions

    def _remove_ended(self, index: str, key: str) -> None:
        """Remove a session that has timed out from its index. One that is young may not be stored yet."""
        until: Any = self._client.zscore(index, key)
        if until is not None and until < utc_now().timestamp() + self._max_seconds - YOUNG_SECONDS:
            self.remove(index, key)

    def _remove_expired(self, index: str) -> None:
        """Remove sessions that have expired, or that were stored while a clock was ahead."""
        now = utc_now().timestamp()
        self._client.zremrangebyscore(index, "-inf", now)
        self._client.zremrangebyscore(index, now + self._max_seconds + CLOCK_SKEW_SECONDS, "+inf")

    def _describe(self, key: str, data: SessionData, milliseconds_left: int, own: str) -> ListedSession:
        """Describe a session. Every request restarts the idle timeout, which shows when the last one was."""
        now = utc_now()
        return ListedSession(
            id=public_id(key),
            current=key == own,
            created_at=datetime.fromtimestamp(data.created_at, UTC),
            last_seen_at=min(now, now - self._idle + timedelta(milliseconds=milliseconds_left)),
            ip=data.address,
            user_agent=data.user_agent,
        )

    def keys(self, index: str) -> list[str]:
        """Return the keys in an index, oldest first. Skips anything that is not the key of a session."""
        members: Any = self._client.zrange(index, 0, -1)
        return [key.decode() for key in members if _SESSION_KEY.fullmatch(key)]


def public_id(key: str) -> str:
    """Return the id that identifies a session to its owner: half of the hash in its Redis key."""
    return key.removeprefix("session:")[:32]
