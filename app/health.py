"""For the operator's probes: is the process alive, can it serve. Not published by nginx."""

import logging

import sqlalchemy as sa
from flask import Blueprint, Flask, Response

from app.auth.guard import open_to_all
from app.database import reading
from app.parts import parts

log = logging.getLogger(__name__)

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
@open_to_all
def livez() -> Response:
    """The process answers. Touches nothing else."""
    return _text("alive\n", 200)


@blueprint.get("/readyz")
@open_to_all
def readyz() -> Response:
    """MySQL and Redis answer. Why one does not is in the log, not in public."""
    try:
        parts().redis.ping()
        with reading() as db:
            db.execute(sa.text("SELECT 1"))
    except Exception as error:  # noqa: BLE001 - whatever it is, this process cannot serve
        log.warning("not_ready", extra={"reason": type(error).__name__})
        return _text("not ready\n", 503)
    return _text("ready\n", 200)


def _text(body: str, status: int) -> Response:
    return Response(body, status, content_type="text/plain; charset=utf-8")


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
