"""gunicorn's worker and logger, where its own do not fit: what it refuses itself, and how it logs.

A request that gunicorn cannot read never reaches the app. By default it is answered in HTML that
quotes it, and logged with what was quoted: a request line may hold the code and state of a Spotify flow.

The arbiter loads this file, so it must not import the app at the top: workers that a HUP starts would
inherit the old code. (They do inherit `config.py`: a release that changes it needs a restart.)
"""

import json
import logging
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from gunicorn import glogging, util  # type: ignore[import-untyped]
from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

# Every other refusal is a 400. nginx.conf says the same, word for word, where it refuses first.
REFUSALS: dict[type[Exception], tuple[int, str]] = {
    errors.LimitRequestLine: (414, "The request line is longer than 4 KiB."),
    errors.LimitRequestHeaders: (
        431,
        "A header field is larger than 8 KiB, or there are too many: 100 is the most.",
    ),
    errors.ExpectationFailed: (417, "The Expect header may only say 100-continue."),
    errors.UnsupportedTransferCoding: (501, "The only transfer coding is chunked."),
}

# Errors that share a class with refusals, and are not the client's.
OURS = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName, errors.ConfigurationProblem)


# Closing a connection waits up to two seconds for the other side to close as well. gunicorn does that in
# the one thread that accepts connections: a few clients that linger would stop the whole worker.
_close_gracefully = util.close_graceful
_closers = ThreadPoolExecutor(8, thread_name_prefix="close")


def _close_elsewhere(*arguments: Any, **options: Any) -> None:
    _closers.submit(_close_gracefully, *arguments, **options)


util.close_graceful = _close_elsewhere


# How much later a worker whose threads are all busy accepts a connection than an idle one.
YIELD_SECONDS = 0.004


class Worker(ThreadWorker):  # type: ignore[misc]  # it has no types
    """Threads, with refusals in the shape of `app/web/problems.py`."""

    def load_wsgi(self) -> None:
        """Load the application, and make a pool of `THREADS` and threads to spare for waiting for Spotify.

        They are started when they are needed. gunicorn asks for the pool before it handles signals. Importing
        the application there takes a second, in which a SIGTERM would be lost.
        """
        super().load_wsgi()
        from app.spotify.clients.capacity import thread_pool_size

        self.tpool = ThreadPoolExecutor(thread_pool_size(self.cfg.threads), thread_name_prefix="request")

    def accept(self, listener: Any) -> None:
        """Accept a connection, but let a worker that is less busy be quicker.

        All workers wake up for each connection. Without this, one of them may get most of a burst, and
        refuse requests because its threads are taken while another one has some to spare.
        """
        busy = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns)
        if self.cfg.workers > 1 and busy >= self.cfg.threads // 4:
            time.sleep(YIELD_SECONDS * min(1.0, busy / self.cfg.threads))
        super().accept(listener)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer and log what went wrong outside the app. Nothing of the request goes into either."""
        request_id = uuid.uuid4().hex
        about: dict[str, Any] = {"reason": type(exc).__name__, "request_id": request_id}
        status, detail = 500, None
        if isinstance(exc, errors.ParseException) and not isinstance(exc, OURS):
            status, detail = REFUSALS.get(type(exc), (400, None))
            self.log.warning("request_refused", extra={**about, "status": status})
        else:
            # The error's text may quote a header, such as a cookie to be set; where it arose does not.
            where = "".join(traceback.format_tb(exc.__traceback__))
            self.log.error("request_failed", extra={**about, "traceback": where})
        with suppress(Exception):  # the client may be gone
            util.write_nonblock(client, answer(status, detail, request_id))


def answer(status: int, detail: str | None, request_id: str) -> bytes:
    """Return a whole response with a problem document, as `app.web` makes them."""
    from app.web.problems import MEDIA_TYPE, PROBLEM_TYPES, InternalError, MalformedRequest

    problem = PROBLEM_TYPES[InternalError if status == 500 else MalformedRequest]
    document = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": status,
        "detail": detail or problem.detail,
        "instance": "/",  # the path may be what could not be read
        "request_id": request_id,
    }
    body = json.dumps(document).encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cross-Origin-Resource-Policy: same-origin",
        "Cross-Origin-Opener-Policy: same-origin",
        "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'",
        "Cache-Control: no-store",
        "Vary: Origin",
        # For nginx, which takes it away and adds what only it knows: the Origin, and whether it is https.
        "X-Backline-Refusal: 1",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's log in the app's format. In a worker, `app/infra/log_setup.py` takes it over."""

    def setup(self, cfg: Any) -> None:
        """Give gunicorn's own handlers the format. Called again when a HUP has loaded the settings anew."""
        super().setup(cfg)
        # Its debug lines quote what clients send, and all settings.
        self.error_log.setLevel(max(self.error_log.level, logging.INFO))
        for handler in self.error_log.handlers:
            handler.setFormatter(Line())


class Line(logging.Formatter):
    """The format of `app.infra.log_setup.JsonFormatter`, which the arbiter must not import (see above)."""

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in self._standard},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")
