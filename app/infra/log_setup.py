"""Logs: one line for each event. The event is a constant, and details are separate fields.

Never pass a secret to a logger.
"""

import json
import logging
import logging.config
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from app.infra.stderr_handler import StderrHandler

# Attributes of every record. All others were passed as `extra`, or added by a filter or by a record factory.
# `makeLogRecord` would use that factory, which may be OpenTelemetry's.
_PLAIN_RECORD = logging.LogRecord("", logging.INFO, "", 0, "", None, None)
_STANDARD = frozenset(vars(_PLAIN_RECORD)) | {"message", "asctime", "taskName"}
_WORD = re.compile(r"[\w.-]+", re.ASCII)
# Types that msgspec writes as `json` does. The others are written as text.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_encode_plain = msgspec.json.Encoder().encode


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON in ASCII, so that no field can forge another line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without the newline."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


class ConsoleFormatter(logging.Formatter):
    """Writes a record for a terminal: time, level, event, then `name=value`. Tracebacks are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without the newline, and the lines of its traceback."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = [f"{_quote_unless_word(name)}={_quote(value)}" for name, value in _fields(record).items()]
        event = _quote_unless_word(record.getMessage())
        line = " ".join([moment, f"{record.levelname:<7}", event, *fields])
        traceback = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n    ".join([line, *map(_escape_unprintable, traceback)])


def configure(*, level: str, style: str, filters: Sequence[logging.Filter] = ()) -> None:
    """Send all logs of this process to standard error, in one format.

    Args:
        level: Records below this level are dropped.
        style: `json` or `console`.
        filters: They see every record in the thread that logs it, and may add fields.
    """
    # Neither format has these. `logging` would look them up for each record.
    logging._srcfile = None  # noqa: SLF001 - see "Optimization" in its HOWTO
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    formatter = ConsoleFormatter if style == "console" else JsonFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"()": StderrHandler, "formatter": "line", "filters": [*filters]}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                # Werkzeug's development server logs whole URLs, with codes and states in them.
                "werkzeug": {"level": "WARNING"},
                "urllib3": {"level": "WARNING"},
                "apscheduler": {"level": "WARNING"},
                "alembic.runtime.plugins": {"level": "WARNING"},
                # In a worker, gunicorn's own handler would block requests while standard error does.
                "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            },
        }
    )


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _quote_unless_word(text: str) -> str:
    return text if _WORD.fullmatch(text) else _quote(text)


def _escape_unprintable(text: str) -> str:
    return "".join(char if char.isprintable() else _quote(char)[1:-1] for char in text)


def _encode(line: dict[str, Any]) -> str:
    """Return a line of JSON in ASCII. msgspec is ten times as fast, but does not escape what is not ASCII."""
    if _PLAIN.issuperset(map(type, line.values())):
        with suppress(ValueError, OverflowError):  # an unpaired surrogate, an integer of more than 64 bits
            encoded = _encode_plain(line)
            if encoded.isascii() and b"\x7f" not in encoded:
                return encoded.decode()
    return json.dumps(line, default=str, separators=(",", ":"))


def _quote(value: object) -> str:
    return json.dumps(value, default=str)
