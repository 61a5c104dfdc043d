"""Refreshing ahead of time: one pass over what is due, and the process that makes passes."""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask

from app.errors import DEPENDENCY_DOWN, BacklineError, SpotifyNotConnected
from app.infra import database
from app.infra.clock import utc_now
from app.resilience.rate_limiter import RateLimiter
from app.services import Services
from app.spotify.tokens import breaker, maintenance, refresh_queue, service
from app.spotify.tokens.refresh import GrantEnded, RefreshInProgress

log = logging.getLogger(__name__)

TICK_SECONDS = 30
UPKEEP_SECONDS = 3600
# How often to compare the host's clock with elapsed time, and the difference that counts as "was set".
CLOCK_CHECK_SECONDS, CLOCK_STEP_SECONDS = 5, 2
# How long what is running may take to end, when asked to. A call and its commit take less, unless
# MySQL is away; then an answer that waits to be stored is given up.
STOP_SECONDS = 15


@dataclass
class RefreshStats:
    """What one pass did: links that needed a refresh and had one, and links that could have none."""

    refreshed: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.refreshed + self.failed


def refresh_due(
    app: Flask,
    *,
    stopping: threading.Event | None = None,
    progress: Callable[[RefreshStats], None] | None = None,
) -> RefreshStats:
    """Refresh every link that is due now, soonest deadline first, in a bounded pool at a bounded rate.

    Any number of passes at once share the work. A pass ends early when refreshing is held back for
    everybody (`app.spotify.tokens.breaker`).

    Raises:
        One of DEPENDENCY_DOWN: the database is away. Nothing more was asked of Spotify then.
    """
    return RefreshPass(app, stopping or threading.Event()).work(progress or (lambda _: None))


class RefreshPass:
    """One pass."""

    def __init__(self, app: Flask, stopping: threading.Event) -> None:
        services: Services = app.extensions["backline"]
        self._app = app
        self._config = services.config
        self._pace = RateLimiter(services.redis, "refresh:pace", services.config.refresh_rate)
        # Three seconds' worth: a reservation must not end while it waits for its turn, though there
        # are ten schedulers.
        self._at_once = min(2 * services.config.refresh_workers, 3 * services.config.refresh_rate)
        self._stopping = stopping
        self._ending = False
        self._failure: Exception | None = None

    def work(self, progress: Callable[[RefreshStats], None]) -> RefreshStats:
        done, running, more = RefreshStats(), set[Future[bool | None]](), True
        with self._app.app_context():
            refresh_queue.deactivate_idle(timedelta(days=self._config.refresh_active_days))
            started = database.read_db_now()
        with ThreadPoolExecutor(self._config.refresh_workers, thread_name_prefix="refresh") as pool:
            while more or running:
                if more and len(running) <= self._at_once / 2:
                    batch = self._reserve(self._at_once - len(running), started)
                    running |= {pool.submit(self._refresh_in_turn, link_id) for link_id in batch}
                    more = bool(batch)
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for result in (future.result() for future in finished):
                    if result is not None:
                        done.refreshed += result
                        done.failed += not result
                        progress(done)
        if self._failure is not None:
            raise self._failure
        return done

    def _reserve(self, limit: int, due_by: datetime) -> list[int]:
        if self._over():
            return []
        with self._app.app_context():
            return refresh_queue.claim_batch(limit, due_by)

    def _over(self) -> bool:
        return self._ending or self._stopping.is_set()

    def _refresh_in_turn(self, link_id: int) -> bool | None:
        """Whether a link could be refreshed; None if there was no need any more, or the pass is over."""
        over = self._over() or self._stopping.wait(self._pace.reserve()) or self._over()
        with self._app.app_context():
            try:
                if over:
                    refresh_queue.release(link_id)
                    return None
                refreshed = self._refresh(link_id)
                if refreshed is False:
                    self._ending = self._ending or bool(breaker.open_breakers())
                    # The breaker may have closed since it held this link back.
                    refresh_queue.release(link_id)
            except DEPENDENCY_DOWN as error:
                self._ending, self._failure = True, error
                return None
            return refreshed

    def _refresh(self, link_id: int) -> bool | None:
        try:
            return service.refresh_if_due(link_id, self._config.refresh_lead) or None
        except (SpotifyNotConnected, RefreshInProgress):
            return None  # others have seen to it
        except (BacklineError, GrantEnded):
            return False  # the attempt's row and the log say why
        except DEPENDENCY_DOWN:
            raise
        except Exception:
            # One link's trouble must not end the pass for all the others.
            log.exception("token_refresh_crashed", extra={"link": link_id})
            return False


def run(app: Flask) -> None:
    """Make a pass every `TICK_SECONDS` until SIGTERM or SIGINT. Running calls are let finish."""
    stopping = threading.Event()
    # Blocked before any thread is made, so that every thread inherits it and `sigwait` below gets
    # them; a handler could run in the middle of APScheduler's own locking.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ticker = BackgroundScheduler(timezone="UTC")
    # The due rows are the work list, so a late tick must still run, and missed ones count once.
    for job, seconds in ((_tick, TICK_SECONDS), (_run_maintenance, UPKEEP_SECONDS)):
        ticker.add_job(
            job,
            "interval",
            args=(app, stopping),
            seconds=seconds,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
            next_run_time=utc_now(),
        )
    services: Services = app.extensions["backline"]
    services.mailer.start()
    ticker.start()
    threading.Thread(target=_follow_clock, args=(ticker, stopping), name="clock", daemon=True).start()
    log.info("scheduler_started", extra={"tick_seconds": TICK_SECONDS})
    received = signal.sigwait(signals)
    log.info("scheduler_stopping", extra={"signal": signal.Signals(received).name})
    stopping.set()
    stop = threading.Thread(target=ticker.shutdown, daemon=True)
    stop.start()
    stop.join(STOP_SECONDS)
    if stop.is_alive():
        # An attempt that is left like this is taken up by the next process after its lease.
        log.warning("scheduler_abandons")
        logging.shutdown()
        os._exit(0)


def _follow_clock(ticker: BackgroundScheduler, stopping: threading.Event) -> None:
    """Run all jobs at once when the host's clock was set, or the host was suspended.

    APScheduler plans by that clock: after it was set back an hour, the next pass would be an hour away.
    """
    offset = utc_now().timestamp() - time.monotonic()
    while not stopping.wait(CLOCK_CHECK_SECONDS):
        before, offset = offset, utc_now().timestamp() - time.monotonic()
        if abs(offset - before) > CLOCK_STEP_SECONDS:
            log.warning("clock_was_set", extra={"seconds": round(offset - before)})
            for job in ticker.get_jobs():
                job.modify(next_run_time=utc_now())


def _tick(app: Flask, stopping: threading.Event) -> None:
    """One pass. While the database is away, try again after a growing pause."""
    pause = 1.0
    while not stopping.is_set():
        try:
            done = refresh_due(app, stopping=stopping)
        except DEPENDENCY_DOWN as error:
            log.warning("refresh_pass_failed", extra={"reason": type(error).__name__})
            stopping.wait(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, TICK_SECONDS)
            continue
        except Exception:
            log.exception("refresh_pass_crashed")
            return
        if done.total:
            log.info("refresh_pass", extra={"refreshed": done.refreshed, "failed": done.failed})
        return


def _run_maintenance(app: Flask, stopping: threading.Event) -> None:
    with app.app_context():
        try:
            maintenance.run(stopping)
        except Exception:
            log.exception("upkeep_crashed")
