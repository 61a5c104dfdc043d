"""How many refreshes there were in each hour, and how they ended. Counted in the history of attempts."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from app.infra.clock import utc_now
from app.infra.database import reading
from app.infra.expiring_cache import ExpiringCache
from app.models import TokenRefresh

HOUR = timedelta(hours=1)
# After this long, all outcomes of an hour have been stored.
SETTLED_AFTER = timedelta(minutes=10)
# Counting a million attempts takes a second. What does not fit into this time is left to the next caller.
MAX_SECONDS = 2.0


class RefreshHistory:
    """Counts attempts by outcome. Remembers the hours that are over."""

    def __init__(self) -> None:
        self._remembered: ExpiringCache[datetime, Mapping[str, int]] = ExpiringCache(48, 86_400)

    def read(self, hours: Sequence[datetime]) -> list[Mapping[str, int] | None]:
        """Return the counts of hours that begin at these times, or None for those not counted yet.

        Raises:
            OperationalError: The database is unavailable.
        """
        until = time.monotonic() + MAX_SECONDS
        found = {hour: self._count(hour, until) for hour in sorted(hours, reverse=True)}
        return [found[hour] for hour in hours]

    def _count(self, hour: datetime, until: float) -> Mapping[str, int] | None:
        counts = self._remembered.get(hour)
        if counts is None and time.monotonic() < until:
            counts = _read(hour)
            if utc_now() > hour + HOUR + SETTLED_AFTER:
                self._remembered.put(hour, counts)
        return counts


def _read(hour: datetime) -> Mapping[str, int]:
    statement = (
        sa.select(TokenRefresh.outcome, sa.func.count())
        .where(TokenRefresh.started_at >= hour, TokenRefresh.started_at < hour + HOUR)
        .group_by(TokenRefresh.outcome)
    )
    with reading() as db:
        return {outcome: count for outcome, count in db.execute(statement) if outcome is not None}
