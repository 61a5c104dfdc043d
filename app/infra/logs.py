"""Logs: one event, one line. The event is a constant; what varies stands in fields of its own.

Nothing secret is ever passed to a logger. A request is logged by its route's template, never by
its URL, because the URL of a callback holds a code and a state.
"""

import json
import logging
import logging.config
import re
import time
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, has_request_context, request
from flask.globals import request_ctx

from app.infra.stderr_handler import StderrHandler
from app.web.error_handlers import request_id
from app.web.problems import MEDIA_TYPE

log = logging.getLogger(__name__)

# What every record has; the rest came by `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_WORD = re.compile(r"[\w.-]+", re.ASCII)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, all ASCII: whatever a field holds, it cannot begin a line of its own."""

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
        return _quoted(line)


class ConsoleFormatter(logging.Formatter):
    """The same for a person at a terminal: time, level, event, then `name=value`. Tracebacks are indented."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = [f"{_word(name)}={_quoted(value)}" for name, value in _fields(record).items()]
        line = " ".join([moment, f"{record.levelname:<7}", _word(record.getMessage()), *fields])
        traceback = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n    ".join([line, *map(_printable, traceback)])


def configure(*, level: str, style: str) -> None:
    """Send all logs of this process to standard error, in one format."""
    formatter = ConsoleFormatter if style == "console" else JsonFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"()": StderrHandler, "formatter": "line"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                # Werkzeug's development server logs whole URLs; our own line says the same without them.
                "werkzeug": {"level": "WARNING"},
                "urllib3": {"level": "WARNING"},
                "apscheduler": {"level": "WARNING"},
                "alembic.runtime.plugins": {"level": "WARNING"},
                # In a worker. gunicorn's own handler would hold up a request while nobody reads.
                "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            },
        }
    )


def init_app(app: Flask) -> None:
    """Log one line for every request."""

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def keep_answer(response: Response) -> Response:
        if request.path not in ("/livez", "/readyz"):  # probes come every few seconds and say nothing
            g.answer = response
        return response

    @app.teardown_request
    def log_request(_: BaseException | None) -> None:
        # Not before: an answer becomes another one if its session cannot be saved.
        answer: Response | None = g.pop("answer", None)
        if answer is None:
            return
        problem = answer.get_json()["type"] if answer.mimetype == MEDIA_TYPE else "ok"
        log.info(
            "request",
            extra={
                "method": request.method,
                "route": request.url_rule.rule if request.url_rule else None,
                "status": answer.status_code,
                "outcome": problem.removeprefix("/problems/"),
                "duration_ms": round((time.perf_counter() - g.get("started", time.perf_counter())) * 1000, 1),
            },
        )


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What came with the record, and in a request whose it is."""
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if not has_request_context():
        return fields
    # Not `flask.session`: to look at it is to have used it, and it may not be open yet.
    session = request_ctx._session  # noqa: SLF001
    user_id = dict.get(session, "user_id") if isinstance(session, dict) else None
    return {"request_id": request_id(), "client": request.remote_addr, "user_id": user_id} | fields


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else _quoted(text)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else _quoted(char)[1:-1] for char in text)


def _quoted(value: object) -> str:
    return json.dumps(value, default=str).replace("\x7f", "\\u007f")  # JSON's one bare control character
