"""Liveness, readiness, and metrics, for operators. nginx does not publish them."""

import logging
from collections.abc import Callable, Sequence
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

PROBE_SECONDS = 1.0

# A stalled server can block a probe until the driver's timeouts expire. Only these threads wait that long.
_probes = ThreadPoolExecutor(max_workers=2, thread_name_prefix="probe")


def init_app(
    app: Flask,
    store: redis.Redis,
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
    all_collectors = [*collectors, DependencyCollector(lambda: _probe(store), from_database)]

    @blueprint.get("/livez")
    @public
    def livez() -> Response:
        """Respond without using any dependency."""
        return _text("alive\n", 200)

    @blueprint.get("/readyz")
    @public
    def readyz() -> Response:
        """Respond 200 if MySQL and Redis work. If not, the log has the reasons."""
        reasons = [reason for reason in _probe(store).values() if reason is not None]
        if reasons:
            log.warning("not_ready", extra={"reasons": reasons})
            return _text("not ready\n", 503)
        return _text("ready\n", 200)

    @blueprint.get("/metrics")
    @public
    def show_metrics() -> Response:
        """Return the metrics of all workers of this server, for Prometheus."""
        sample()
        return Response(metrics.render(all_collectors), content_type=CONTENT_TYPE_LATEST)

    app.register_blueprint(blueprint)


def _probe(store: redis.Redis) -> dict[str, str | None]:
    """Return why MySQL and Redis cannot do within a second what requests need, or None for each that can."""
    probes: dict[str, Future[Any]] = {
        "mysql": _probes.submit(probe_database, db.engine),
        "redis": _probes.submit(probe_redis, store),
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
