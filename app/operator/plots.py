"""Bar charts as SVG: positions and sizes, which the template writes as elements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 480, 140
# Inside the chart, for the labels of the axes.
LEFT, RIGHT, TOP, BOTTOM = 34, 4, 8, 18
GAP = 3


@dataclass(frozen=True)
class Series:
    """One kind of events: its name, its color (a class in the style sheet), and its counts by hour."""

    name: str
    color: str
    counts: Sequence[int]

    @property
    def total(self) -> int:
        """The sum of all hours."""
        return sum(self.counts)


@dataclass(frozen=True)
class Segment:
    """The part of a bar that belongs to one series."""

    y: float
    height: float
    color: str


@dataclass(frozen=True)
class Bar:
    """One hour. `text` says its counts in words, and `label` is written below some of the bars."""

    x: float
    width: float
    segments: Sequence[Segment]
    text: str
    label: str | None


@dataclass(frozen=True)
class Plot:
    """A stacked bar chart of the last hours. `lines` are the heights and values of horizontal lines."""

    bars: Sequence[Bar]
    lines: Sequence[tuple[float, int]]
    series: Sequence[Series]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def has_colors(self) -> bool:
        """Whether the series differ by their colors."""
        return len({one.color for one in self.series}) > 1


def stacked_bars(hours: Sequence[datetime], series: Sequence[Series]) -> Plot:
    """Return a bar for each hour, with the series on top of each other."""
    totals = [sum(one.counts[number] for one in series) for number in range(len(hours))]
    top = _round_up(max(totals))
    width = (WIDTH - LEFT - RIGHT) / len(hours)
    return Plot(
        bars=[
            Bar(
                x=round(LEFT + number * width + GAP / 2, 1),
                width=round(width - GAP, 1),
                segments=_segments(number, series, top),
                text=_describe(hour, {one.name: one.counts[number] for one in series}),
                label=f"{hour:%H}:00" if hour.hour % 6 == 0 else None,
            )
            for number, hour in enumerate(hours)
        ],
        lines=[(_y(value, top), value) for value in sorted({0, top // 2, top})],
        series=series,
    )


def _segments(number: int, series: Sequence[Series], top: int) -> list[Segment]:
    found, below = [], 0
    for one in series:
        count = one.counts[number]
        if count:
            y, bottom = _y(below + count, top), _y(below, top)
            # A failure among a million successes must be visible.
            height = max(1.5, bottom - y)
            found.append(Segment(round(bottom - height, 1), round(height, 1), one.color))
        below += count
    return found


def _y(value: float, top: int) -> float:
    return round(HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM), 1)


def _round_up(count: int) -> int:
    """Return an even digit or ten, times a power of ten: half of it is a whole number too."""
    power: int = 10 ** (len(str(count)) - 1)
    return next(factor * power for factor in (2, 4, 6, 8, 10) if factor * power >= count)


def _describe(hour: datetime, counts: Mapping[str, int]) -> str:
    found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f"{hour:%H}:00 UTC: {found or 'none'}"
