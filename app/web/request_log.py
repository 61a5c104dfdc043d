"""One log line for each request, and the fields that identify the request in all other lines.

A request is logged with its route's template and never with its URL: that of an OAuth callback contains a
code and a state.
"""

import logging
import time

from flask import Flask, Response, g, has_request_context, request
from flask.globals import request_ctx

from app.web.error_handlers import request_id
from app.web.problems import MEDIA_TYPE

log = logging.getLogger(__name__)


class RequestFields(logging.Filter):
    """Adds `request_id`, `client`, and `user_id` to the records of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, unless the record has them already. Keep every record."""
        if has_request_context():
            # `flask.session` might not be open yet, and would count as accessed.
            session = request_ctx._session  # noqa: SLF001
            user_id = dict.get(session, "user_id") if isinstance(session, dict) else None
            fields = {"request_id": request_id(), "client": request.remote_addr, "user_id": user_id}
            record.__dict__ |= fields | record.__dict__
        return True


def init_app(app: Flask) -> None:
    """Log one line for every request, except for health probes."""

    @app.before_request
    def start_timer() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def log_request(response: Response) -> Response:
        if request.path in ("/livez", "/readyz"):
            return response
        problem = response.get_json()["type"] if response.mimetype == MEDIA_TYPE else "ok"
        log.info(
            "request",
            extra={
                "method": request.method,
                "route": request.url_rule.rule if request.url_rule else None,
                "status": response.status_code,
                "outcome": problem.removeprefix("/problems/"),
                "duration_ms": round((time.perf_counter() - g.get("started", time.perf_counter())) * 1000, 1),
            },
        )
        return response
