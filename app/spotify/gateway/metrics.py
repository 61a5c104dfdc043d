"""Metrics about requests to the gateway."""

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
        _REQUESTS.labels(call.method, call.endpoint, outcome, cache).inc()
