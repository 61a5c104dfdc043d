"""The indexes by which people see and end their sessions.

An index decides nothing: the session itself, with its `epoch` and `grant_id`, decides what it may do
(`app.web.access`, `app.spotify.connections`).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher
from app.web.session_data import CLOCK_SKEW_SECONDS, SessionData, decode
from config import Config

# In one index; one more ends the oldest.
MAX_SESSIONS = 100
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
    """Sorted sets in Redis with the keys of sessions, one for each account and each grant."""

    def __init__(self, client: redis.Redis, cipher: RedisCipher, config: Config) -> None:
        self._client = client
        self._cipher = cipher
        self._idle = timedelta(seconds=config.session_idle_seconds)
        self._max_seconds = config.session_max_seconds

    def add(self, batch: Any, index: str, key: str, created_at: float) -> None:
        """Add a session to an index, in the transaction that stores the session."""
        batch.zadd(index, {key: created_at + self._max_seconds})
        batch.expire(index, self._max_seconds)

    def forget(self, index: str, key: str) -> None:
        """Remove a session that has ended, or that no longer belongs here."""
        self._client.zrem(index, key)

    def listed(self, indexes: Iterable[str], *, epoch: int | None, own: str) -> list[ListedSession]:
        """The live sessions of an account with this epoch, last seen first. `own` is the request's key."""
        found = [
            self._describe(key, data, left, own)
            for index in indexes
            for key, data, left in self._alive(index)
            if data.index == index and data.account_epoch == epoch
        ]
        return sorted(found, key=lambda listed: listed.last_seen_at, reverse=True)

    def end(self, indexes: Iterable[str], chosen: Callable[[str], bool]) -> int:
        """End the sessions whose keys are chosen. Returns how many there were."""
        return sum(self._end(index, [key for key in self._keys(index) if chosen(key)]) for index in indexes)

    def end_oldest(self, index: str) -> None:
        """End those beyond `MAX_SESSIONS`."""
        self._forget_ended(index)
        self._end(index, self._keys(index)[:-MAX_SESSIONS])

    def _end(self, index: str, keys: list[str]) -> int:
        if not keys:
            return 0
        with self._client.pipeline(transaction=True) as batch:
            batch.delete(*keys)
            batch.zrem(index, *keys)
            gone: int = batch.execute()[0]
        return gone

    def _alive(self, index: str) -> list[tuple[str, SessionData, int]]:
        """The sessions of an index, with the milliseconds left until each times out."""
        self._forget_ended(index)
        keys = self._keys(index)
        with self._client.pipeline(transaction=False) as batch:
            for key in keys:
                batch.get(key)
                batch.pttl(key)
            answers = batch.execute()
        found = []
        for key, raw, left in zip(keys, answers[::2], answers[1::2], strict=True):
            data = decode(self._cipher, key, raw) if raw is not None else None
            if data is None:
                self.forget(index, key)  # it has timed out
            else:
                found.append((key, data, left))
        return found

    def _forget_ended(self, index: str) -> None:
        """Remove sessions that have timed out, or were written while a clock was ahead."""
        now = utc_now().timestamp()
        self._client.zremrangebyscore(index, "-inf", now)
        self._client.zremrangebyscore(index, now + self._max_seconds + CLOCK_SKEW_SECONDS, "+inf")

    def _describe(self, key: str, data: SessionData, left: int, own: str) -> ListedSession:
        """Describe a session. Every request restarts its idle timeout, which tells when it was last seen."""
        now = utc_now()
        return ListedSession(
            id=public_id(key),
            current=key == own,
            created_at=datetime.fromtimestamp(data.created_at, UTC),
            last_seen_at=min(now, now - self._idle + timedelta(milliseconds=left)),
            ip=data.address,
            user_agent=data.user_agent,
        )

    def _keys(self, index: str) -> list[str]:
        """The keys of an index, oldest first. Anything that is not a session's key is left alone."""
        found: Any = self._client.zrange(index, 0, -1)
        return [key.decode() for key in found if _SESSION_KEY.fullmatch(key)]


def public_id(key: str) -> str:
    """What identifies a session to its owner: half of the hash that is its key in Redis."""
    return key.removeprefix("session:")[:32]
