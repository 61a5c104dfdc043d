"""The sandbox's clock, which tests advance instead of waiting."""

from __future__ import annotations

import calendar
import threading
from datetime import UTC, datetime, timedelta

GRANT_LIFE_MONTHS = 6


class Clock:
    """The system clock plus an offset in seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.offset = 0.0

    def now(self) -> datetime:
        """Return the current time, in UTC."""
        return datetime.now(UTC) + timedelta(seconds=self.offset)

    def now_ms(self) -> int:
        """Return the current time in milliseconds since the epoch."""
        return int(self.now().timestamp() * 1000)

    def advance(self, seconds: float) -> None:
        """Move the clock forward by that many seconds."""
        with self._lock:
            self.offset += seconds

    def set_offset(self, seconds: float) -> None:
        """Set the offset from the system clock, in seconds."""
        with self._lock:
            self.offset = seconds


def six_months_after(moment: datetime) -> datetime:
    """Return the same day six months later, or the last day of that month."""
    months = moment.month - 1 + GRANT_LIFE_MONTHS
    year, month = moment.year + months // 12, months % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)


def as_text(moment: datetime) -> str:
    """Format a time as RFC 3339 in UTC with milliseconds: `2026-11-22T07:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_whole_seconds(moment: datetime) -> str:
    """Format a time as the Web API does: `2026-11-22T07:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
