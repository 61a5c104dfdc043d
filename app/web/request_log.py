"""One log line for each request, and the fields that identify the request in all other lines.

A request is logged with its route's template and never with its URL: that of an OAuth callback contains a
code and a state.
"""

import logging
import time

from flask import Flask, Response, g, has_request_context
from flask.globals import request_ctx

from app.web import metrics
from app.web.error_handlers import request_id_of
from app.web.problems import MEDIA_TYPE
from app.web.trace_context import trace_of

log = logging.getLogger(__name__)

_PROBES = ("/livez", "/readyz")


class RequestFields(logging.Filter):
    """Adds `request_id`, `client`, and `user_id` to a request's records.

    Also `token_id`, `trace_id`, and `parent_id`, if the request has them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, unless the record has them already. Keep every record."""
        if has_request_context():
            current = request_ctx.request
            # `flask.session` might not be open yet, and would count as accessed.
            session = request_ctx._session  # noqa: SLF001
            fields = record.__dict__
            fields.setdefault("request_id", request_id_of(current.environ))
            fields.setdefault("client", current.remote_addr)
            user_id = dict.get(session, "user_id") if isinstance(session, dict) else None
            snapshot = getattr(getattr(session, "identity", None), "snapshot", None)
            if snapshot is not None and snapshot.personal_token is not None:
                user_id = snapshot.user.id
                fields.setdefault("token_id", snapshot.personal_token.id)
            fields.setdefault("user_id", user_id)
            trace = trace_of(current.environ)
            if trace is not None:
                fields.setdefault("trace_id", trace.trace_id)
                fields.setdefault("parent_id", trace.parent_id)
        return True


def init_app(app: Flask) -> None:
    """Log and count every request, except for health probes."""

    @app.before_request
    def start_timer() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def log_request(response: Response) -> Response:
        current = request_ctx.request
        if current.path in _PROBES:
            return response
        is_problem = response.status_code >= 400 and response.mimetype == MEDIA_TYPE
        outcome = response.get_json()["type"].removeprefix("/problems/") if is_problem else "ok"
        now = time.perf_counter()
        seconds = now - g.get("started", now)
        route = current.url_rule.rule if current.url_rule else None
        metrics.count_request(current.method, route, response.status_code, seconds)
        log.info(
            "request",
            extra={
                "method": current.method,
                "route": route,
                "status": response.status_code,
                "outcome": outcome,
                "duration_ms": round(seconds * 1000, 1),
            },
        )
        return response
