"""Line charts as SVG, drawn without a library."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Point = tuple[float, float]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 70, 160, 40, 50
FONT = 'font-family="sans-serif" font-size="12"'
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df")


def draw(file: Path, title: str, x_name: str, y_name: str, lines: Mapping[str, Sequence[Point]]) -> None:
    """Write a chart of named lines. Both axes are logarithmic."""
    points = [point for line in lines.values() for point in line]
    x_scale = _Scale([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_scale = _Scale([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = _frame(title, x_name, y_name)
    for x in x_scale.ticks(sorted({x for x, _ in points})):
        place = x_scale(x)
        parts.append(_rule(place, TOP, place, HEIGHT - BOTTOM))
        parts.append(_text(place, HEIGHT - BOTTOM + 18, short(x), 'text-anchor="middle"'))
    for y in y_scale.decades():
        place = y_scale(y)
        parts.append(_rule(LEFT, place, WIDTH - RIGHT, place))
        parts.append(_text(LEFT - 8, place + 4, short(y), 'text-anchor="end"'))
    for (name, line), color, row in zip(lines.items(), COLORS, range(len(lines)), strict=False):
        places = [(x_scale(x), y_scale(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (x, y), (_, value) in zip(places, line, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
            parts.append(_text(x, y - 8, f"{value:.3g}", f'fill="{color}" text-anchor="middle"'))
        parts.append(_text(WIDTH - RIGHT + 12, TOP + 12 + 18 * row, name, f'fill="{color}"'))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


class _Scale:
    """Places values on a logarithmic axis."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        # Short axes would show noise as if it were growth.
        self._low, self._high = float(math.floor(low)), float(max(math.ceil(high), math.floor(low) + 1))
        if start < end:  # the horizontal axis ends where the values do
            self._low, self._high = low, max(high, low + 0.1)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        logarithm = math.log10(value) if value > 0 else self._low
        part = (logarithm - self._low) / (self._high - self._low)
        return self._start + part * (self._end - self._start)

    def ticks(self, values: Sequence[float]) -> list[float]:
        """Return the values that are far enough apart to have labels."""
        chosen: list[float] = []
        for value in values:
            if not chosen or self(value) - self(chosen[-1]) >= 28:
                chosen.append(value)
        return chosen

    def decades(self) -> list[float]:
        """Return the powers of ten on the axis."""
        return [10.0**power for power in range(math.ceil(self._low), math.floor(self._high) + 1)]


def _frame(title: str, x_name: str, y_name: str) -> list[str]:
    """Return the beginning of a chart: its background and names."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, title, 'font-size="15" font-weight="bold"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_name, 'text-anchor="middle"'),
        _text(14, HEIGHT / 2, y_name, f'text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2:.0f})"'),
    ]


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#d0d7de"/>'


def short(value: float) -> str:
    """Return a number as a label, such as 10k."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def draw_hours(
    file: Path, title: str, y_name: str, lines: Mapping[str, Sequence[Point]], *, limit: tuple[str, float]
) -> None:
    """Write a chart of named lines over hours, with linear axes, and a dashed line at a limit."""
    hours = max(x for line in lines.values() for x, _ in line)
    highest = max([limit[1], *(y for line in lines.values() for _, y in line)])
    step = 10 ** math.floor(math.log10(highest))
    ticks = [step * number for number in range(int(highest / step) + 2)]
    width, height = WIDTH - RIGHT - LEFT, HEIGHT - BOTTOM - TOP

    def place(x: float, y: float) -> Point:
        return LEFT + width * x / hours, HEIGHT - BOTTOM - height * y / ticks[-1]

    parts = _frame(title, "hours", y_name)
    for hour in range(0, round(hours) + 1, max(1, round(hours / 8))):
        x, bottom = place(hour, 0)
        parts.append(_rule(x, TOP, x, bottom))
        parts.append(_text(x, bottom + 18, str(hour), 'text-anchor="middle"'))
    for value in ticks:
        _, y = place(0, value)
        parts.append(_rule(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 4, short(value), 'text-anchor="end"'))
    limits = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(0, limit[1]), place(hours, limit[1])))
    parts.append(f'<polyline points="{limits}" fill="none" stroke="#57606a" stroke-dasharray="6 4"/>')
    for (name, line), color, row in zip(lines.items(), COLORS, range(len(lines)), strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(_text(WIDTH - RIGHT + 12, TOP + 12 + 18 * row, name, f'fill="{color}"'))
    parts.append(_text(WIDTH - RIGHT + 12, TOP + 12 + 18 * len(lines), limit[0], 'fill="#57606a"'))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")
