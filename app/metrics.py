"""Counters and histograms for Prometheus at `/metrics`. Labels are names of ours, never parts of a URL.

Under gunicorn each worker writes its numbers into files of a directory that `deploy/gunicorn.conf.py`
makes (PROMETHEUS_MULTIPROC_DIR), and any of them adds them all up.
Source: https://prometheus.github.io/client_python/multiprocess/
"""

from contextlib import suppress

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from app.spotify.calls import Call

_GATEWAY = Counter(
    "backline_gateway_requests",
    "Calls of apps to the gateway. `cache` is hit, shared or miss; empty where there was no answer.",
    ["method", "route", "outcome", "cache"],
)
_CALLS = Histogram(
    "backline_web_api_call_seconds",
    "Calls to Spotify's Web API, by the status of the answer, or `none`.",
    ["method", "route", "status"],
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)


def count_request(call: Call, outcome: str, cache: str = "") -> None:
    """Count a request to the gateway, and how it ended."""
    with _at_no_cost():
        _GATEWAY.labels(call.method, call.endpoint, outcome, cache).inc()


def count_call(call: Call, status: str, seconds: float) -> None:
    """Count a call to Spotify, and how long it took."""
    with _at_no_cost():
        _CALLS.labels(call.method, call.endpoint, status).observe(seconds)


def _at_no_cost() -> suppress:
    """A full disk, or a directory that was cleaned away, must not cost anybody an answer."""
    return suppress(OSError, ValueError)


def text(gate_wait: float) -> bytes:
    """All numbers, in Prometheus' text format. `gate_wait`: see its help."""
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError:  # there is no directory to share: this process is all there is
        registry.register(REGISTRY)
    # Of the moment, and the same for all processes: nobody keeps it.
    own = CollectorRegistry()
    Gauge(
        "backline_web_api_gate_wait_seconds",
        "How much longer Spotify wants no calls from this client id; 0 where the gate is open.",
        registry=own,
    ).set(gate_wait)
    return generate_latest(registry) + generate_latest(own)
