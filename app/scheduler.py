"""Refreshing ahead of time: one pass over what is due, and the process that makes passes."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask

from app.clock import utc_now
from app.problems import Problem
from app.spotify import tokens

log = logging.getLogger(__name__)

TICK_SECONDS = 30


@dataclass
class Pass:
    """What one pass did: links that needed a refresh and had one, and links that could have none."""

    refreshed: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.refreshed + self.failed


def refresh_due(
    app: Flask, *, stopping: threading.Event | None = None, progress: Callable[[Pass], None] | None = None
) -> Pass:
    """Refresh every link that is due now, soonest deadline first, in a bounded pool at a bounded rate.

    Two passes at once, on one machine or several, are harmless: each refresh goes to one of them.
    """
    config = app.extensions["backline"].config
    lead = timedelta(seconds=config.refresh_lead_seconds)
    with app.app_context():
        since = utc_now() - timedelta(days=config.refresh_active_days)
        due = tokens.due_links(lead, active_since=since)

    pace, stopping = _Pace(config.refresh_rate), stopping or threading.Event()

    def refresh(link_id: int) -> bool | None:
        if stopping.wait(pace.pause()):
            return None
        with app.app_context():
            return _refresh(link_id, lead)

    done = Pass()
    with ThreadPoolExecutor(config.refresh_workers, thread_name_prefix="refresh") as pool:
        for refreshed in pool.map(refresh, due):
            done.refreshed += refreshed is True
            done.failed += refreshed is False
            if progress is not None:
                progress(done)
    return done


class _Pace:
    """Spreads the calls of all threads evenly: at most `rate` a second."""

    def __init__(self, rate: int) -> None:
        self._interval = 1 / rate
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def pause(self) -> float:
        """Take the next turn. Returns how many seconds it is away."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._interval
            return turn - now


def _refresh(link_id: int, lead: timedelta) -> bool | None:
    """Whether a link could be refreshed; None if there was no need any more."""
    try:
        return tokens.refresh_ahead(link_id, lead) or None
    except (Problem, tokens.GrantEnded):
        return False  # the attempt's row and the log say why
    except Exception:
        # One link's trouble must not end the pass for all the others.
        log.exception("token_refresh_crashed", extra={"link": link_id})
        return False


def run(app: Flask) -> None:
    """Make a pass every `TICK_SECONDS` until SIGTERM or SIGINT. Running calls are let finish."""
    stopping = threading.Event()

    def tick() -> None:
        try:
            done = refresh_due(app, stopping=stopping)
        except Exception:
            log.exception("refresh_pass_failed")
            return
        if done.total:
            log.info("refresh_pass", extra={"refreshed": done.refreshed, "failed": done.failed})

    # Blocked before any thread is made, so that every thread inherits it and `sigwait` below gets
    # them; a handler could run in the middle of APScheduler's own locking.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ticker = BackgroundScheduler(timezone="UTC")
    # The due rows are the work list, so a late tick must still run, and missed ones count once.
    ticker.add_job(
        tick,
        "interval",
        seconds=TICK_SECONDS,
        max_instances=1,
        coalesce=True,
        misfire_grace_time=None,
        next_run_time=utc_now(),
    )
    ticker.start()
    log.info("scheduler_started", extra={"tick_seconds": TICK_SECONDS})
    received = signal.sigwait(signals)
    log.info("scheduler_stopping", extra={"signal": signal.Signals(received).name})
    stopping.set()
    ticker.shutdown(wait=True)
