"""For operators: is the process alive, can it serve, what has it done. Not published by nginx."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from flask import Blueprint, Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.infra.database import db
from app.infra.probes import probe_database, probe_redis, reason_of
from app.services import services
from app.spotify.clients import metrics
from app.web.access import public

log = logging.getLogger(__name__)

blueprint = Blueprint("health", __name__)

PROBE_SECONDS = 1.0

# A stalled server may hold a probe for as long as the driver's time-outs allow. These threads wait
# for it; the answer does not.
_probes = ThreadPoolExecutor(max_workers=2, thread_name_prefix="probe")


@blueprint.get("/livez")
@public
def livez() -> Response:
    """The process answers. Touches nothing else."""
    return _text("alive\n", 200)


@blueprint.get("/readyz")
@public
def readyz() -> Response:
    """MySQL and Redis can do within a second what requests need. If not, the reason is in the log."""
    engine, store = db.engine, services().redis
    answers: list[Future[Any]] = [_probes.submit(probe_database, engine), _probes.submit(probe_redis, store)]
    done, late = wait(answers, timeout=PROBE_SECONDS)
    reasons = [reason_of(error) for answer in done if (error := answer.exception()) is not None]
    for answer in late:
        answer.cancel()
        reasons.append("TimeoutError")
    if reasons:
        log.warning("not_ready", extra={"reasons": reasons})
        return _text("not ready\n", 503)
    return _text("ready\n", 200)


@blueprint.get("/metrics")
@public
def numbers() -> Response:
    """Counters for Prometheus, of all workers of this server."""
    gate = services().rate_limiter
    return Response(metrics.text(gate.wait(), gate.waits()), content_type=CONTENT_TYPE_LATEST)


def _text(body: str, status: int) -> Response:
    return Response(body, status, content_type="text/plain; charset=utf-8")


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
