"""What a session holds, and the index by which people see and end theirs.

The index decides nothing: who is signed in is decided by the session itself, and its `epoch`
(`app.auth.guard`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import redis

from app.clock import utc_now
from config import Config

# Of one user; a sign-in beyond them ends the oldest. Nobody's list grows without end.
MAX_SESSIONS = 100

# What is planted in Redis must be no more than wrong: neither overflow a column nor last forever.
RowId = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Moment = Annotated[float, msgspec.Meta(ge=0, lt=2**32)]


class SessionData(msgspec.Struct, forbid_unknown_fields=True):
    """All that a session holds. `created_at` is in seconds since 1970.

    All but `spotify_user_id` is written once, when the id is given out, so that two requests at
    once have nothing of each other's to lose.
    """

    created_at: Moment
    user_id: RowId | None = None
    epoch: int = 0
    address: str = ""
    user_agent: str = ""
    spotify_user_id: RowId | None = None


@dataclass(frozen=True)
class ListedSession:
    """A session as its owner sees it. `id` names it, and opens nothing."""

    id: str
    current: bool
    created_at: datetime
    last_seen_at: datetime
    ip: str
    user_agent: str


class SessionIndex:
    """The sessions of each user: a sorted set in Redis of the names that it knows sessions by."""

    def __init__(self, client: redis.Redis, config: Config) -> None:
        self._client = client
        self._idle = timedelta(seconds=config.session_idle_seconds)
        self._max_seconds = config.session_max_seconds

    def add(self, batch: Any, user_id: int, store_id: str, created_at: float) -> None:
        """Put a session into the index, in a transaction with the session itself."""
        batch.zadd(_key(user_id), {store_id: created_at + self._max_seconds})
        batch.expire(_key(user_id), self._max_seconds)

    def forget(self, user_id: int, store_id: str) -> None:
        """Take a session out that has ended."""
        self._client.zrem(_key(user_id), store_id)

    def listed(self, user_id: int, *, own: str, epoch: int) -> list[ListedSession]:
        """The sessions that live, the one seen last first. `own` is the request's.

        When each was seen last is read off the idle time-out that every request starts anew, so it
        costs no write.
        """
        index, now = _key(user_id), utc_now()
        self._client.zremrangebyscore(index, "-inf", now.timestamp())
        keys = self._keys(user_id)
        with self._client.pipeline(transaction=False) as batch:
            for key in keys:
                batch.get(key)
                batch.pttl(key)
            answers = batch.execute()
        found = []
        for key, raw, left in zip(keys, answers[::2], answers[1::2], strict=True):
            data = decode(raw) if raw is not None else None
            if data is None:
                self._client.zrem(index, key)  # it has ended by itself
            elif data.epoch == epoch:
                found.append(
                    ListedSession(
                        id=names_session(key),
                        current=key == own,
                        created_at=datetime.fromtimestamp(data.created_at, UTC),
                        last_seen_at=min(now, now - self._idle + timedelta(milliseconds=left)),
                        ip=data.address,
                        user_agent=data.user_agent,
                    )
                )
        return sorted(found, key=lambda listed: listed.last_seen_at, reverse=True)

    def end(self, user_id: int, chosen: Callable[[str], bool]) -> int:
        """End the sessions whose name in Redis is chosen. Returns how many there were."""
        ended = [key for key in self._keys(user_id) if chosen(key)]
        if not ended:
            return 0
        with self._client.pipeline(transaction=True) as batch:
            batch.delete(*ended)
            batch.zrem(_key(user_id), *ended)
            gone: int = batch.execute()[0]
        return gone

    def end_oldest(self, user_id: int) -> None:
        """End those beyond `MAX_SESSIONS`."""
        oldest = self._keys(user_id)[:-MAX_SESSIONS]
        if oldest:
            self.end(user_id, lambda key: key in oldest)

    def _keys(self, user_id: int) -> list[str]:
        """Oldest first."""
        found: Any = self._client.zrange(_key(user_id), 0, -1)
        return [key.decode() for key in found]


def decode(raw: bytes) -> SessionData | None:
    """What a session holds; None for anything that is not ours."""
    try:
        return msgspec.msgpack.decode(raw, type=SessionData)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def names_session(store_id: str) -> str:
    """What names a session to its owner, and opens nothing: half of the hash that Redis knows it by."""
    return store_id.removeprefix("session:")[:32]


def _key(user_id: int) -> str:
    return f"sessions-of:{user_id}"
