"""Metrics about calls to the Web API. Labels are endpoint templates, never parts of a URL."""

from collections.abc import Iterator

from prometheus_client import Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.infra.metrics import best_effort
from app.spotify.clients.application import ApplicationKind
from app.spotify.clients.call import Call
from app.spotify.clients.rate_limit import SpotifyRateLimiter

_CALLS = Histogram(
    "backline_web_api_call_seconds",
    "Calls to Spotify's Web API, by the status of the response, or `none`.",
    ["method", "route", "status", "application"],
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)


_BREAKER_OPEN = Gauge(
    "backline_web_api_breaker_open",
    "How many workers make no calls to the Web API at the moment, because it fails.",
    multiprocess_mode="livesum",
)


def sample_breaker(*, is_open: bool) -> None:
    """Record whether this process's circuit breaker is open."""
    with best_effort():
        _BREAKER_OPEN.set(is_open)


def count_call(call: Call, status: str, application: ApplicationKind, seconds: float) -> None:
    """Count a call to Spotify, and how long it took."""
    with best_effort():
        _CALLS.labels(call.method, call.endpoint, status, application.value).observe(seconds)


class RateLimitCollector(Collector):
    """Reports for how long Spotify rejects calls.

    A `Gauge` would keep the values in a file, which outlives its worker.
    """

    def __init__(self, rate_limiter: SpotifyRateLimiter) -> None:
        self._rate_limiter = rate_limiter

    def collect(self) -> Iterator[Metric]:
        """Read the waits from Redis."""
        yield GaugeMetricFamily(
            "backline_web_api_wait_seconds",
            "For how many more seconds Spotify rejects all calls of this client id; 0 if it does not.",
            self._rate_limiter.retry_after(),
        )
        endpoints = GaugeMetricFamily(
            "backline_web_api_endpoint_wait_seconds",
            "For how many more seconds Spotify rejects calls to an endpoint; only endpoints with a wait.",
            labels=["route"],
        )
        for route, wait in self._rate_limiter.endpoint_waits().items():
            endpoints.add_metric([route], wait)
        yield endpoints
