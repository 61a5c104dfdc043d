"""Metrics about requests to the API, and about what it depends on."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.infra.metrics import best_effort

_REQUESTS = Histogram(
    "backline_http_request_seconds",
    "Requests to the API, by the template of the route, and how long they took.",
    ["method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)
# Looking a child up by its labels takes half as long as counting.
_children: dict[tuple[str, str, int], Histogram] = {}


def count_request(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count a request. One without a route can have any method, so its method is not recorded."""
    key = (method, route, status) if route is not None else ("other", "none", status)
    with best_effort():
        child = _children.get(key)
        if child is None:
            child = _children[key] = _REQUESTS.labels(*key)
        child.observe(seconds)


class DependencyCollector(Collector):
    """Reports which dependencies work, and what further collectors read from the database, if that works."""

    def __init__(
        self, probe: Callable[[], Mapping[str, str | None]], from_database: Sequence[Collector]
    ) -> None:
        self._probe = probe
        self._from_database = from_database

    def collect(self) -> Iterator[Metric]:
        """Probe the dependencies."""
        problems = self._probe()
        family = GaugeMetricFamily(
            "backline_dependency_up",
            "Whether MySQL and Redis can do what requests need.",
            labels=["dependency"],
        )
        for name, problem in problems.items():
            family.add_metric([name], float(problem is None))
        yield family
        if problems["mysql"] is None:
            for collector in self._from_database:
                yield from collector.collect()
