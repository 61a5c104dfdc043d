"""Counters and histograms for Prometheus at `/metrics`. Labels are names of ours, never parts of a URL.

Under gunicorn each worker writes its numbers into files of a directory that `deploy/gunicorn.conf.py`
makes (PROMETHEUS_MULTIPROC_DIR), and any of them adds them all up.
Source: https://prometheus.github.io/client_python/multiprocess/
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def gateway_request(call: Call) -> Iterator[Callable[..., None]]:
    """Count one request. The block says how it ended: `seen(outcome, cache="")`."""
    said = ["error", ""]

    def seen(outcome: str, cache: str = "") -> None:
        said[:] = [outcome, cache]

    try:
        yield seen
    finally:
        _GATEWAY.labels(call.method, call.endpoint, *said).inc()


@contextmanager
def web_api_call(call: Call) -> Iterator[Callable[[str], None]]:
    """Time one call. The block says with which status it was answered, if it was."""
    began, status = time.perf_counter(), ["none"]
    try:
        yield lambda said: status.__setitem__(0, said)
    finally:
        _CALLS.labels(call.method, call.endpoint, *status).observe(time.perf_counter() - began)


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
