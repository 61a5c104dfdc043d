"""The numbers on the page for operators."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa

from app.errors import DEPENDENCY_DOWN
from app.infra import database
from app.infra.clock import utc_now
from app.infra.database import reading
from app.infra.hourly_counts import HourlyCounts, last_day
from app.models import AccessToken
from app.spotify.applications.lookup import count_by_state
from app.spotify.clients.rate_limit import SpotifyRateLimiter
from app.spotify.tokens import breaker
from app.spotify.tokens.metrics import count_connections
from app.spotify.tokens.refresh_history import RefreshHistory

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class DueConnection:
    """The connection whose refresh is the most overdue."""

    spotify_user_id: int
    seconds: float


@dataclass(frozen=True)
class TokenNumbers:
    """What the database knows: connections, and the refreshes of each hour by outcome."""

    connections: Mapping[str, int]
    oldest_due: DueConnection | None
    refreshes: Sequence[Mapping[str, int] | None]  # None: not counted yet
    paused: Sequence[str]  # the reasons why refreshing is paused
    applications: Mapping[str, int]  # people's own, by state


@dataclass(frozen=True)
class Limits:
    """What Redis knows: Spotify's limits, and the sign-ins and throttled requests of each hour."""

    wait: float  # for how many seconds Spotify rejects all calls
    endpoint_waits: Mapping[str, float]
    calls: int  # in the last 30 seconds
    max_calls: int | None
    events: Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class Overview:
    """Everything on the page. A part is None while the server that knows it is not available."""

    at: datetime
    hours: Sequence[datetime]
    tokens: TokenNumbers | None
    limits: Limits | None


class OverviewReader:
    """Reads the numbers."""

    def __init__(
        self, hourly: HourlyCounts, rate_limiter: SpotifyRateLimiter, *, has_application: bool
    ) -> None:
        self._hourly = hourly
        self._has_application = has_application
        self._rate_limiter = rate_limiter
        self._refreshes = RefreshHistory()

    def read(self) -> Overview:
        """Read all numbers that are available."""
        now = utc_now()
        hours = last_day(now)
        return Overview(
            now, hours, _unless_down(lambda: self._tokens(hours)), _unless_down(lambda: self._limits(hours))
        )

    def _tokens(self, hours: Sequence[datetime]) -> TokenNumbers:
        return TokenNumbers(
            connections=count_connections(has_application=self._has_application),
            oldest_due=_oldest_due(),
            refreshes=self._refreshes.read(hours),
            paused=[found.name for found in breaker.open_breakers()],
            applications=count_by_state(),
        )

    def _limits(self, hours: Sequence[datetime]) -> Limits:
        calls, max_calls = self._rate_limiter.budget_usage()
        return Limits(
            wait=self._rate_limiter.retry_after(),
            endpoint_waits=self._rate_limiter.endpoint_waits(),
            calls=calls,
            max_calls=max_calls,
            events=self._hourly.read(hours),
        )


def _unless_down(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except DEPENDENCY_DOWN as error:
        log.error("dependency_unavailable", extra={"reason": type(error).__name__})
        return None


def _oldest_due() -> DueConnection | None:
    now = database.read_db_now()
    earliest = (
        sa.select(AccessToken.spotify_user_id, AccessToken.due_at)
        .where(AccessToken.due_at <= now)
        .order_by(AccessToken.due_at)
        .limit(1)
    )
    with reading() as db:
        found = db.execute(earliest).one_or_none()
    if found is None or found.due_at is None:
        return None
    return DueConnection(found.spotify_user_id, (now - found.due_at).total_seconds())
