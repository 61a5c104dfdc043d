"""Counts events by the hour, in Redis, for all processes and for a day."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import redis

from app.infra.clock import utc_now
from app.infra.redis_round_trip import round_trip, values_of

HOURS = 24
HOUR = timedelta(hours=1)
_KEEP_SECONDS = (HOURS + 1) * 3600


class HourlyCounts:
    """Counts of events by hour. The names of events must not depend on what clients send."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def add(self, event: str) -> None:
        """Count an event. If Redis is not available, it is not counted."""
        key = _key(begin_of_hour(utc_now()))
        with suppress(redis.RedisError):
            round_trip(self._client, [("HINCRBY", key, event, 1), ("EXPIRE", key, _KEEP_SECONDS)])

    def read(self, hours: Sequence[datetime]) -> list[dict[str, int]]:
        """Return the counts of each event in hours that begin at these times.

        Raises:
            redis.RedisError: Redis is not available.
        """
        replies = values_of(self._client, [("HGETALL", _key(hour)) for hour in hours])
        return [
            {name.decode(): int(count) for name, count in zip(found[::2], found[1::2], strict=True)}
            for found in replies
        ]


def begin_of_hour(moment: datetime) -> datetime:
    """Return when the hour of a moment began."""
    return moment.replace(minute=0, second=0, microsecond=0)


def last_day(now: datetime) -> list[datetime]:
    """Return when each of the last 24 hours began, including the current one, oldest first."""
    current = begin_of_hour(now)
    return [current - ago * HOUR for ago in reversed(range(HOURS))]


def _key(hour: datetime) -> str:
    return f"hourly:{hour:%Y-%m-%dT%H}"
