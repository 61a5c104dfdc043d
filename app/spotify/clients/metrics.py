"""Counters and histograms for Prometheus at `/metrics`. Labels are names of ours, never parts of a URL.

Under gunicorn each worker writes its numbers into files of a directory that `deploy/gunicorn.conf.py`
makes (PROMETHEUS_MULTIPROC_DIR), and any of them adds them all up.
Source: https://prometheus.github.io/client_python/multiprocess/
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.spotify.clients.call import Call

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


def text(gate_wait: float, endpoint_waits: Mapping[str, float]) -> bytes:
    """All numbers, in Prometheus' text format. For the waits see their help."""
    return _shared() + generate_latest(_Waits(gate_wait, endpoint_waits))


class _Waits(Collector):
    """The waits of this moment. A `Gauge` would keep them in a file, which outlives its worker."""

    def __init__(self, gate_wait: float, endpoint_waits: Mapping[str, float]) -> None:
        self._gate_wait, self._endpoint_waits = gate_wait, endpoint_waits

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "backline_web_api_gate_wait_seconds",
            "How much longer Spotify wants no calls from this client id; 0 where the gate is open.",
            self._gate_wait,
        )
        of_endpoints = GaugeMetricFamily(
            "backline_web_api_endpoint_wait_seconds",
            "How much longer Spotify wants no calls to an endpoint; only those with a wait are listed.",
            labels=["route"],
        )
        for route, wait in self._endpoint_waits.items():
            of_endpoints.add_metric([route], wait)
        yield of_endpoints


def _shared() -> bytes:
    registry = CollectorRegistry()
    try:
        collector = MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        # `deploy/metrics.py` merges what dead workers counted; halfway, it would be counted twice.
        with Path(collector._path, "merge.lock").open("ab") as lock:  # noqa: SLF001
            fcntl.flock(lock, fcntl.LOCK_SH)
            return generate_latest(registry)
    except (OSError, ValueError):  # there is no directory to share: this process is all there is
        return generate_latest(REGISTRY)
