"""What each tier has to do for a number of connections, computed from measured figures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.spotify.tokens.breaker_rules import RULES, Reason
from app.spotify.tokens.maintenance import KEEP_SUCCESSES_FOR
from benchmarks.fleet import LEAD
from benchmarks.simulation import LIFETIME

CONNECTIONS = (1_000_000, 10_000_000, 100_000_000)
# As in docs/sizing.md: people online at the busiest time, seconds between their requests, their sessions,
# and how busy a core may be.
ONLINE, REQUEST_SECONDS, SESSIONS, BUSY = 0.02, 5, 1.5, 0.7
# With random nonces, a key may encrypt so many values (NIST SP 800-38D section 8.3). A refresh encrypts two.
ENCRYPTIONS, PER_REFRESH = 2**32, 2
SECONDS_PER_DAY = 86_400

Figures = Mapping[str, Sequence[Mapping[str, Any]]]


def rows(parts: Figures) -> Iterable[Sequence[str]]:
    """Return a table: its head, and a row for each resource. What has not been measured is left out."""
    yield "", *(f"{count // 1_000_000}M connections" for count in CONNECTIONS), "measured by"
    for name, unit, per_connection, part in _resources(parts):
        if per_connection is not None:
            yield name, *(_shown(count * per_connection, unit) for count in CONNECTIONS), f"`{part}`"
    rate = 1 / (LIFETIME - LEAD).total_seconds()
    yield (
        "days until a key has encrypted 2^32 values",
        *(_shown(ENCRYPTIONS / (PER_REFRESH * rate * count * SECONDS_PER_DAY), "") for count in CONNECTIONS),
        "",
    )


def _resources(parts: Figures) -> Iterable[tuple[str, str, float | None, str]]:
    """Yield what each connection needs of each resource: name, unit, and the part that measured it."""
    figure = _Found(parts)
    rate = 1 / (LIFETIME - LEAD).total_seconds()
    requests = ONLINE / REQUEST_SECONDS
    window = RULES[Reason.REVOCATIONS].window.total_seconds()
    yield "refreshes", "/s", rate, "fleet"
    per_process = figure("engine", "refreshes per second, one process")
    yield "scheduler processes", "", per_process and rate / per_process / BUSY, "engine"
    for name, amount in (
        ("SQL statements of refreshes", "SQL round trips per refresh"),
        ("Redis commands of refreshes", "Redis commands per refresh"),
    ):
        found = figure("engine", amount)
        yield name, "/s", found and rate * found, "engine"
    yield "rows of history that are added, and pruned", "/s", rate, "pruning"
    yield "history of refreshes", "GB", _gigabytes(figure("storage", "a refresh in MariaDB"), rate), "storage"
    connection = figure("storage", "a connection in MariaDB")
    yield "connections in MariaDB", "GB", connection and connection / 1e9, "storage"
    session = figure("storage", "a session in Redis")
    yield "sessions in Redis", "GB", session and SESSIONS * session / 1e9, "storage"
    yield "requests at the busiest time", "/s", requests, "routes"
    cpu = figure("routes", "/api/spotify/v1/me/player", "CPU ms")
    yield "cores for requests", "", cpu and requests * cpu / 1000 / BUSY, "routes"
    for name, amount, per_connection in (
        ("counting connections for metrics", "1,000,000 connections by state", 1.0),
        ("looking for rejections in ten minutes of history", "rejections among", rate * window),
    ):
        milliseconds = figure("counting", amount)
        yield name, "s", milliseconds and milliseconds / 1000 / 1e6 * per_connection, "counting"


class _Found:
    def __init__(self, parts: Figures) -> None:
        self._parts = parts

    def __call__(self, part: str, name: str, column: str = "") -> float | None:
        """Return the figure of a part whose name begins so, if it has been measured."""
        for figure in self._parts.get(part, ()):
            if figure["name"].startswith(name):
                return float(figure["more"][column] if column else figure["value"])
        return None


def _gigabytes(per_refresh: float | None, rate: float) -> float | None:
    return per_refresh and per_refresh * rate * KEEP_SUCCESSES_FOR.total_seconds() / 1e9


def _shown(value: float, unit: str) -> str:
    """Return a number with two significant digits."""
    digits = max(0, 1 - math.floor(math.log10(value)))
    rounded = round(value, 1 - math.floor(math.log10(value)))
    return f"{rounded:,.{digits}f} {unit}".strip()
