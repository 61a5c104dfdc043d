"""Liveness, readiness, and metrics, for operators. nginx does not publish them."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import redis
from flask import Blueprint, Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from app.infra import metrics
from app.infra.database import db
from app.infra.probes import probe_database, probe_redis, reason_of
from app.web.access import public
from app.web.metrics import DependencyCollector

log = logging.getLogger(__name__)

# Less than the second that HAProxy waits for a response (deploy/cluster/haproxy.cfg).
PROBE_SECONDS = 0.8
# A failover takes less time. If it made /readyz fail, the load balancer would have no host left.
FAILOVER_SECONDS = 5.0

# A stalled server can block a probe until the driver's timeouts expire. Only these threads wait that long.
_probes = ThreadPoolExecutor(max_workers=2, thread_name_prefix="probe")


class Readiness:
    """Whether this process can serve requests, given what has been failing, and for how long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._have_worked: set[str] = set()
        self._failing_since: dict[str, float] = {}

    def is_ready(self, reasons: Mapping[str, str | None]) -> bool:
        """Return whether all dependencies work, or worked moments ago. One that never has must work first.

        Args:
            reasons: Why each dependency does not work now, or None.
        """
        now = time.monotonic()
        with self._lock:
            for name, reason in reasons.items():
                if reason is None:
                    self._have_worked.add(name)
                    self._failing_since.pop(name, None)
                else:
                    self._failing_since.setdefault(name, now)
            return all(
                name in self._have_worked and now - since < FAILOVER_SECONDS
                for name, since in self._failing_since.items()
            )


def init_app(
    app: Flask,
    client: redis.Redis,
    collectors: Sequence[Collector],
    from_database: Sequence[Collector],
    sample: Callable[[], None],
) -> None:
    """Add `/livez`, `/readyz`, and `/metrics`, which includes what the collectors report.

    Those that read `from_database` are left out while it is down. `sample` records what changes too often to
    be counted. Each worker calls it once a second (`deploy/worker.py`).
    """
    app.extensions["sample_metrics"] = sample
    blueprint = Blueprint("health", __name__)
    readiness = Readiness()
    all_collectors = [*collectors, DependencyCollector(lambda: _probe(client), from_database)]

    @blueprint.get("/livez")
    @public
    def livez() -> Response:
        """Respond without using any dependency."""
        return _text("alive\n", 200)

    @blueprint.get("/readyz")
    @public
    def readyz() -> Response:
        """Respond 200 if MySQL and Redis work, or did so moments ago. If not, the log has the reasons."""
        found = _probe(client)
        is_ready = readiness.is_ready(found)
        if reasons := [reason for reason in found.values() if reason is not None]:
            log.warning("not_ready", extra={"reasons": reasons, "status": 200 if is_ready else 503})
        return _text("ready\n", 200) if is_ready else _text("not ready\n", 503)

    @blueprint.get("/metrics")
    @public
    def show_metrics() -> Response:
        """Return the metrics of all workers of this server, for Prometheus."""
        sample()
        return Response(metrics.render(all_collectors), content_type=CONTENT_TYPE_LATEST)

    app.register_blueprint(blueprint)


def _probe(client: redis.Redis) -> dict[str, str | None]:
    """Return why MySQL and Redis cannot do within a second what requests need, or None for each that can."""
    probes: dict[str, Future[Any]] = {
        "mysql": _probes.submit(probe_database, db.engine),
        "redis": _probes.submit(probe_redis, client),
    }
    wait(probes.values(), timeout=PROBE_SECONDS)
    return {name: _reason(probe) for name, probe in probes.items()}


def _reason(probe: Future[Any]) -> str | None:
    if probe.cancel() or not probe.done():
        return "TimeoutError"
    error = probe.exception()
    return None if error is None else reason_of(error)


def _text(body: str, status: int) -> Response:
    return Response(body, status, content_type="text/plain; charset=utf-8")
