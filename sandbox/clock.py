"""The sandbox's own time, which tests move forward instead of waiting."""

from __future__ import annotations

import calendar
import threading
from datetime import UTC, datetime, timedelta

GRANT_LIFE_MONTHS = 6


class Clock:
    """The computer's clock plus an offset in seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.offset = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.offset)

    def now_ms(self) -> int:
        return int(self.now().timestamp() * 1000)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self.offset += seconds

    def set_offset(self, seconds: float) -> None:
        with self._lock:
            self.offset = seconds


def six_months_after(moment: datetime) -> datetime:
    """The same day of the month half a year later, or that month's last day."""
    months = moment.month - 1 + GRANT_LIFE_MONTHS
    year, month = moment.year + months // 12, months % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)


def as_text(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as `2026-11-22T07:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_whole_seconds(moment: datetime) -> str:
    """The Web API's date form, `2026-11-22T07:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
