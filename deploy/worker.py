"""A gunicorn worker and logger with our error responses and log format.

A request that gunicorn cannot parse never reaches the app. By default, the response and the log quote it, and
its request line may contain the code and state of an OAuth callback.

The arbiter imports this module, so it must not import the app at the top: workers started by a HUP would
inherit the old code. (They do inherit `config.py`, `app/settings`, and libraries (`deploy/preload.py`), so a
release that changes those needs a restart.)
"""

import json
import logging
import math
import os
import select
import signal
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from gunicorn import glogging, util  # type: ignore[import-untyped]
from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from deploy import shortcuts

# Everything else is a 400. nginx.conf uses the same words for requests that it rejects first.
REJECTIONS: dict[type[Exception], tuple[int, str]] = {
    errors.LimitRequestLine: (414, "The request line is longer than 4 KiB."),
    errors.LimitRequestHeaders: (
        431,
        "A header field is larger than 8 KiB, or there are more than 100.",
    ),
    errors.ExpectationFailed: (417, "The Expect header may only say 100-continue."),
    errors.UnsupportedTransferCoding: (501, "The only transfer coding is chunked."),
}

# Errors with the same base class that are not the client's fault.
SERVER_ERRORS = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName, errors.ConfigurationProblem)


# Closing a connection waits up to two seconds for the client to close it as well. gunicorn does so in the
# thread that accepts connections, where a few slow clients would block the whole worker.
_close_gracefully = util.close_graceful
_close_pool = ThreadPoolExecutor(8, thread_name_prefix="close")


def _close_in_pool(*arguments: Any, **options: Any) -> None:
    _close_pool.submit(_close_gracefully, *arguments, **options)


util.close_graceful = _close_in_pool
shortcuts.install()


# What stops a worker. If it came before the worker handles it, it would be lost, and stopping would take
# `graceful_timeout`. So the arbiter holds it from before the fork; the worker gets it when it is ready.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


def hold_stop_signals() -> None:
    """Hold the signals that stop a worker, which this process is about to fork."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def _release_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


os.register_at_fork(after_in_parent=_release_stop_signals)


# How long a worker whose threads are all busy waits before it accepts a connection.
YIELD_SECONDS = 0.004
# How often a worker shows that it is alive. gunicorn would do so several times for each request.
HEARTBEAT_SECONDS = 1.0
# How long a thread waits for the next request on a connection.
NEXT_REQUEST_MS = 5


class Worker(ThreadWorker):  # type: ignore[misc]  # it has no types
    """A gthread worker that responds to bad requests with problem documents (`app/web/problems.py`)."""

    _notified = -HEARTBEAT_SECONDS
    sample_metrics: Callable[[], None] | None = None  # deploy/gunicorn.conf.py sets it

    def notify(self) -> None:
        """Touch the heartbeat file, and sample metrics, at most once a second."""
        now = time.monotonic()
        if now - self._notified >= HEARTBEAT_SECONDS:
            self._notified = now
            super().notify()
            if self.sample_metrics is not None:
                self.sample_metrics()

    def init_signals(self) -> None:
        """Handle signals from now on, first of all those that were held."""
        super().init_signals()
        _release_stop_signals()

    def load_wsgi(self) -> None:
        """Load the application, and create the pool: `THREADS`, and spare threads that wait for Spotify.

        Threads start when they are needed. gunicorn would ask for the pool before it handles signals, and a
        SIGTERM during the import, which takes a second, would be lost.
        """
        shortcuts.remember_settings(self.cfg)
        super().load_wsgi()
        from app.spotify.clients.capacity import thread_pool_size

        self.tpool = ThreadPoolExecutor(thread_pool_size(self.cfg.threads), thread_name_prefix="request")

    def accept(self, listener: Any) -> None:
        """Accept a connection, after a pause that gives less busy workers a head start.

        All workers wake up for each connection. Without the pause, one of them may get most of a burst, and
        reject requests while another worker has free threads.
        """
        busy = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns)
        if self.cfg.workers > 1 and busy >= self.cfg.threads // 4:
            time.sleep(YIELD_SECONDS * min(1.0, busy / self.cfg.threads))
        super().accept(listener)

    def handle(self, conn: Any) -> Any:
        """Handle a request, and those that follow it at once on a busy connection.

        gunicorn would return the connection to its main thread after each request. That takes a fifth of the
        CPU time of a short one, because both threads need the GIL. Connections whose last request did not
        follow at once return there: waiting for them in vain takes more.
        """
        responded_at: float = getattr(conn, "responded_at", -math.inf)
        is_busy = time.monotonic() - responded_at < NEXT_REQUEST_MS / 1000
        while True:
            keep_alive = super().handle(conn)
            conn.responded_at = time.monotonic()
            if keep_alive is not True or not is_busy or not self.alive:
                return keep_alive
            if not self._next_request_arrives(conn):
                return keep_alive

    def _next_request_arrives(self, conn: Any) -> bool:
        """Wait a moment for the next request on a connection, unless others wait for a thread."""
        if not self.tpool._work_queue.empty() or conn.parser.unreader.buf.getvalue():  # noqa: SLF001
            return False
        arrival = select.poll()
        arrival.register(conn.sock, select.POLLIN)
        return bool(arrival.poll(NEXT_REQUEST_MS))

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Respond to an error outside the app, and log it. Neither quotes the request."""
        request_id = uuid.uuid4().hex
        fields: dict[str, Any] = {"reason": type(exc).__name__, "request_id": request_id}
        status, detail = 500, None
        if isinstance(exc, errors.ParseException) and not isinstance(exc, SERVER_ERRORS):
            status, detail = REJECTIONS.get(type(exc), (400, None))
            self.log.warning("request_rejected", extra={**fields, "status": status})
        else:
            # The error's message may quote a header, such as Set-Cookie. The stack does not.
            stack = "".join(traceback.format_tb(exc.__traceback__))
            self.log.error("request_failed", extra={**fields, "traceback": stack})
        with suppress(Exception):  # the client may be gone
            util.write_nonblock(client, error_response(status, detail, request_id))


def error_response(status: int, detail: str | None, request_id: str) -> bytes:
    """Return a complete response with a problem document, like those of `app.web`."""
    from app.web.problems import MEDIA_TYPE, PROBLEM_TYPES, InternalError, MalformedRequest

    problem = PROBLEM_TYPES[InternalError if status == 500 else MalformedRequest]
    document = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": status,
        "detail": detail or problem.detail,
        "instance": "/",  # the path may be what could not be parsed
        "request_id": request_id,
    }
    body = json.dumps(document).encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        *(f"{name}: {value}" for name, value in shortcuts.SECURITY_HEADERS),
        "Vary: Origin",
        # For nginx, which removes it and adds the CORS headers and those for https.
        "X-Backline-Rejected: 1",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's log in the app's format. In a worker, `app/infra/log_setup.py` takes it over."""

    def setup(self, cfg: Any) -> None:
        """Set the format of gunicorn's own handlers. A HUP calls it again, with the new settings."""
        super().setup(cfg)
        # Debug lines contain what clients send, and all settings.
        self.error_log.setLevel(max(self.error_log.level, logging.INFO))
        for handler in self.error_log.handlers:
            handler.setFormatter(JsonFormatter())


class JsonFormatter(logging.Formatter):
    """The format of `app.infra.log_setup.JsonFormatter`, which the arbiter must not import (see above)."""

    _standard = frozenset(vars(logging.LogRecord("", 20, "", 0, "", None, None))) | {
        "message",
        "asctime",
        "taskName",
    }

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without the newline."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in self._standard},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))
