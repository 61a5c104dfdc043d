"""Metrics about requests to the gateway."""

from functools import lru_cache

from prometheus_client import Counter

from app.infra.metrics import best_effort
from app.spotify.clients.call import Call

_REQUESTS = Counter(
    "backline_gateway_requests",
    "Requests of apps to the gateway. `cache` is hit, shared, or miss, or empty if Spotify did not respond.",
    ["method", "route", "outcome", "cache"],
)


def count_request(call: Call, outcome: str, cache: str = "") -> None:
    """Count a request to the gateway by its outcome."""
    with best_effort():
        _counter(call.method, call.endpoint, outcome, cache).inc()


@lru_cache(maxsize=1024)
def _counter(*labels: str) -> Counter:
    """Return the counter with these labels. prometheus_client takes longer to find it."""
    return _REQUESTS.labels(*labels)
