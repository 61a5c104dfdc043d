"""The process that refreshes tokens ahead of time, and runs maintenance once an hour."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import redis
from flask import Flask

from app.errors import DEPENDENCY_DOWN
from app.infra.clock import utc_now
from app.infra.probes import reason_of
from app.mail.mailer import Mailer
from app.resilience.rate_limiter import RateLimiter
from app.spotify.tokens.batch_claims import BatchClaims
from app.spotify.tokens.maintenance import Maintenance
from app.spotify.tokens.refresh import Refresher
from app.spotify.tokens.refresh_pass import RefreshPass, RefreshStats
from config import Config

if TYPE_CHECKING:
    from apscheduler.schedulers.background import BackgroundScheduler

log = logging.getLogger(__name__)

TICK_SECONDS = 30
MAINTENANCE_SECONDS = 3600
# How often to compare the host's clock with elapsed time, and the difference that counts as a change.
CLOCK_CHECK_SECONDS, CLOCK_STEP_SECONDS = 5, 2
# How long running refreshes may take to end at shutdown. A call and its commit take less, unless MySQL is
# down; then a result that is waiting to be stored is lost.
STOP_SECONDS = 15


class Scheduler:
    """Runs passes and maintenance, in this process or once on request."""

    def __init__(
        self,
        app: Flask,
        config: Config,
        client: redis.Redis,
        refresher: Refresher,
        claims: BatchClaims,
        maintenance: Maintenance,
        mailer: Mailer,
        complete_imported: Callable[[threading.Event], int],  # `app.imports.profiles`
    ) -> None:
        self._app = app
        self._config = config
        self._client = client
        self._refresher = refresher
        self._claims = claims
        self._maintenance = maintenance
        self._mailer = mailer
        self._complete_imported = complete_imported
        self._stopping = threading.Event()

    def refresh_due(
        self,
        progress: Callable[[RefreshStats], None] = lambda _: None,
        *,
        stopping: threading.Event | None = None,
    ) -> RefreshStats:
        """Make one pass over the connections that are due now, until `stopping` is set.

        `progress` is called after each connection that needed a refresh.

        Raises:
            Exception: One of `DEPENDENCY_DOWN`. The pass has ended, without further calls to Spotify.
        """
        limiter = RateLimiter(self._client, "refresh:rate", self._config.refresh_rate)
        stopping = stopping or threading.Event()
        refresh_pass = RefreshPass(self._app, self._config, self._refresher, self._claims, limiter, stopping)
        return refresh_pass.run(progress)

    def complete_imported(self) -> int:
        """Ask Spotify whose the imported grants are that have been refreshed. Returns their number."""
        return self._complete_imported(self._stopping)

    def run(self) -> None:
        """Make a pass every `TICK_SECONDS` until SIGTERM or SIGINT, then let running refreshes end."""
        # Block the signals before any thread starts, so that all threads inherit this and `sigwait` receives
        # them. A handler could interrupt APScheduler while it holds its own locks.
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        ticker = self._ticker()
        self._mailer.start()
        ticker.start()
        threading.Thread(
            target=_follow_clock, args=(ticker, self._stopping), name="clock", daemon=True
        ).start()
        log.info("scheduler_started", extra={"tick_seconds": TICK_SECONDS})
        received = signal.sigwait(signals)
        log.info("scheduler_stopping", extra={"signal": signal.Signals(received).name})
        self._stopping.set()
        stop = threading.Thread(target=ticker.shutdown, daemon=True)
        stop.start()
        stop.join(STOP_SECONDS)
        if stop.is_alive():
            # Another process continues the attempts that are still running, once their leases expire.
            log.warning("scheduler_stop_timed_out")
            logging.shutdown()
            os._exit(0)

    def _ticker(self) -> BackgroundScheduler:
        from apscheduler.schedulers.background import BackgroundScheduler

        ticker = BackgroundScheduler(timezone="UTC")
        # The queue is in the database, so a late tick must still run, and several missed ones count as one.
        for job, seconds in (
            (self._tick, TICK_SECONDS),
            (self._run_imported, TICK_SECONDS),
            (self._run_maintenance, MAINTENANCE_SECONDS),
        ):
            ticker.add_job(
                job,
                "interval",
                seconds=seconds,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
                next_run_time=utc_now(),
            )
        return ticker

    def _tick(self) -> None:
        """Make one pass. While the database or Redis is down, retry with a growing delay."""
        delay = 1.0
        while not self._stopping.is_set():
            try:
                stats = self.refresh_due(stopping=self._stopping)
            except DEPENDENCY_DOWN as error:
                log.warning("refresh_pass_failed", extra={"reason": reason_of(error)})
                self._stopping.wait(delay * random.uniform(0.5, 1))
                delay = min(delay * 2, TICK_SECONDS)
                continue
            except Exception:
                log.exception("refresh_pass_crashed")
                return
            if stats.total:
                log.info("refresh_pass", extra={"refreshed": stats.refreshed, "failed": stats.failed})
            return

    def _run_imported(self) -> None:
        with self._app.app_context():
            try:
                self.complete_imported()
            except DEPENDENCY_DOWN as error:
                log.warning("imported_profiles_failed", extra={"reason": reason_of(error)})
            except Exception:
                log.exception("imported_profiles_crashed")

    def _run_maintenance(self) -> None:
        with self._app.app_context():
            try:
                self._maintenance.run(self._stopping)
            except Exception:
                log.exception("maintenance_crashed")


def _follow_clock(ticker: BackgroundScheduler, stopping: threading.Event) -> None:
    """Run all jobs immediately after the host's clock was changed, or the host was suspended.

    APScheduler plans by that clock. If it is set back an hour, the next pass would be an hour away.
    """
    offset = utc_now().timestamp() - time.monotonic()
    while not stopping.wait(CLOCK_CHECK_SECONDS):
        before, offset = offset, utc_now().timestamp() - time.monotonic()
        if abs(offset - before) > CLOCK_STEP_SECONDS:
            log.warning("clock_changed", extra={"seconds": round(offset - before)})
            for job in ticker.get_jobs():
                job.modify(next_run_time=utc_now())
