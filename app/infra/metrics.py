"""Render all metrics of this server in Prometheus' text format.

Under gunicorn, each worker writes its numbers to files in a directory that `deploy/gunicorn.conf.py` creates
(PROMETHEUS_MULTIPROC_DIR), and any worker can add them up.
Source: https://prometheus.github.io/client_python/multiprocess/
"""

import fcntl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector


def best_effort() -> suppress:
    """Ignore a full disk or a deleted directory: a metric must not make a request fail."""
    return suppress(OSError, ValueError)


def render(collectors: Iterable[Collector]) -> bytes:
    """Return what all workers have counted, and what the collectors report now."""
    return _counted() + b"".join(generate_latest(collector) for collector in collectors)


def _counted() -> bytes:
    registry = CollectorRegistry()
    try:
        collector = MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        # `deploy/metrics.py` merges the files of dead workers. A read in the middle would count them twice.
        with Path(collector._path, "merge.lock").open("ab") as lock:  # noqa: SLF001
            fcntl.flock(lock, fcntl.LOCK_SH)
            return generate_latest(registry)
    except (OSError, ValueError):  # no shared directory: this process is the only one
        return generate_latest(REGISTRY)
