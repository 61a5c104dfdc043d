"""Logs: one event, one line. The event is a constant; what varies stands in fields of its own.

Nothing secret is ever passed to a logger. A request is logged by its route's template, never by
its URL, because the URL of a callback holds a code and a state.
"""

import json
import logging
import logging.config
import time
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, has_request_context, request, session

from app.problems import request_id

log = logging.getLogger(__name__)

# What every record has; the rest came by `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: whatever a field holds, it cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """The same for a person at a terminal: time, level, event, then `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = " ".join(
            f"{name}={json.dumps(value, default=str)}" for name, value in _fields(record).items()
        )
        line = f"{moment} {record.levelname:<7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(*, level: str, style: str) -> None:
    """Send all logs of this process to standard error, in one format."""
    formatter = ConsoleFormatter if style == "console" else JsonFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                # Werkzeug's development server logs whole URLs; our own line says the same without them.
                "werkzeug": {"level": "WARNING"},
                "urllib3": {"level": "WARNING"},
                "apscheduler": {"level": "WARNING"},
                "alembic.runtime.plugins": {"level": "WARNING"},
            },
        }
    )


def init_app(app: Flask) -> None:
    """Log one line for every request."""

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def log_request(response: Response) -> Response:
        if request.path in ("/livez", "/readyz"):
            return response  # probes come every few seconds and say nothing
        log.info(
            "request",
            extra={
                "method": request.method,
                "route": request.url_rule.rule if request.url_rule else None,
                "status": response.status_code,
                "duration_ms": round((time.perf_counter() - g.get("started", time.perf_counter())) * 1000, 1),
                "user_id": session.get("user_id"),
            },
        )
        return response


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if has_request_context():
        fields.setdefault("request_id", request_id())
    return fields
