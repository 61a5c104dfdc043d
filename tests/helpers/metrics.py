"""What `/metrics` reports."""

import re
from collections.abc import Callable

Sample = tuple[str, frozenset[tuple[str, str]]]


def samples(text: str) -> dict[Sample, float]:
    """Parse Prometheus' text format: the values by name and labels."""
    found = {}
    for line in text.splitlines():
        if line.startswith("backline_"):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()  # type: ignore[union-attr]
            pairs = frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))
            assert (name, pairs) not in found
            found[name, pairs] = float(value)
    return found


class MetricDeltas:
    """By how much metrics have grown. Other tests in this process count too."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._before = samples(read())

    def of(self, name: str, **labels: str) -> float:
        wanted, now = frozenset(labels.items()), samples(self._read())
        keys = [key for key in now if key[0] == name and wanted <= key[1]]
        return sum(now[key] - self._before.get(key, 0) for key in keys)
