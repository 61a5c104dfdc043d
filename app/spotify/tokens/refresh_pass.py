"""One pass over the connections that are due: refreshes their tokens ahead of time."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from flask import Flask

from app.errors import DEPENDENCY_DOWN, BacklineError, SpotifyNotConnected
from app.infra import database
from app.resilience.rate_limiter import RateLimiter
from app.spotify.tokens import breaker, refresh_queue
from app.spotify.tokens.refresh import GrantEnded, RefreshInProgress
from app.spotify.tokens.service import TokenService
from config import Config

log = logging.getLogger(__name__)


class RefreshResult(Enum):
    """The result of a pass for one connection."""

    REFRESHED = auto()
    FAILED = auto()
    SKIPPED = auto()  # it is no longer due, another caller is refreshing it, or the pass is ending


@dataclass
class RefreshStats:
    """How many connections a pass has refreshed, and how many it could not refresh."""

    refreshed: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """The connections that needed a refresh."""
        return self.refreshed + self.failed

    def add(self, result: RefreshResult) -> None:
        """Count a result."""
        self.refreshed += result is RefreshResult.REFRESHED
        self.failed += result is RefreshResult.FAILED


class RefreshPass:
    """Refreshes every connection that is due, next to expire first, with a fixed number of threads.

    Any number of passes may share the work. `limiter` bounds the rate of all of them together.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        tokens: TokenService,
        limiter: RateLimiter,
        stopping: threading.Event,
    ) -> None:
        self._app = app
        self._config = config
        self._tokens = tokens
        self._limiter = limiter
        # Claim no more than three seconds' worth of refreshes. Then every claim is processed before it
        # expires, even if ten schedulers share the rate.
        self._max_claimed = min(2 * config.refresh_workers, 3 * config.refresh_rate)
        self._stopping = stopping  # set when the process ends
        self._ending = threading.Event()  # set when this pass ends early

    def run(self, progress: Callable[[RefreshStats], None]) -> RefreshStats:
        """Run the pass, and call `progress` after each connection that needed a refresh.

        It ends early if the breaker opens (`app.spotify.tokens.breaker`).

        Raises:
            Exception: One of `DEPENDENCY_DOWN`. The pass has ended, without further calls to Spotify.
        """
        stats, running, may_claim = RefreshStats(), set[Future[RefreshResult]](), True
        failure: BaseException | None = None
        with self._app.app_context():
            refresh_queue.deactivate_idle(timedelta(days=self._config.refresh_active_days))
            started_at = database.read_db_now()
        with ThreadPoolExecutor(self._config.refresh_workers, thread_name_prefix="refresh") as pool:
            while may_claim or running:
                if may_claim and len(running) <= self._max_claimed / 2:
                    batch = self._claim(self._max_claimed - len(running), started_at)
                    running |= {pool.submit(self._refresh_within_rate, connection) for connection in batch}
                    may_claim = bool(batch)
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    failure = future.exception() or failure
                    if future.exception() is None and future.result() is not RefreshResult.SKIPPED:
                        stats.add(future.result())
                        progress(stats)
        if failure is not None:
            raise failure
        return stats

    def _claim(self, limit: int, due_by: datetime) -> list[int]:
        if self._is_over():
            return []
        with self._app.app_context():
            return refresh_queue.claim_batch(limit, due_by)

    def _is_over(self) -> bool:
        return self._ending.is_set() or self._stopping.is_set()

    def _refresh_within_rate(self, spotify_user_id: int) -> RefreshResult:
        """Refresh one connection when the rate limit allows it.

        Raises:
            Exception: One of `DEPENDENCY_DOWN`, which ends the pass.
        """
        is_over = self._is_over() or self._stopping.wait(self._limiter.reserve()) or self._is_over()
        with self._app.app_context():
            try:
                result = RefreshResult.SKIPPED if is_over else self._refresh(spotify_user_id)
                if result is RefreshResult.FAILED and not self._is_over() and breaker.open_breakers():
                    self._ending.set()
                if is_over or result is RefreshResult.FAILED:
                    # After a failure as well: the breaker may have closed since it rejected this attempt.
                    refresh_queue.release(spotify_user_id)
            except DEPENDENCY_DOWN:
                self._ending.set()
                raise
            return result

    def _refresh(self, spotify_user_id: int) -> RefreshResult:
        try:
            needed_refresh = self._tokens.refresh_if_due(spotify_user_id)
        except (SpotifyNotConnected, RefreshInProgress):
            return RefreshResult.SKIPPED
        except (BacklineError, GrantEnded):
            return RefreshResult.FAILED  # the history and the log have the reason
        except DEPENDENCY_DOWN:
            raise
        except Exception:
            # An unexpected error about one connection must not end the pass for the others.
            log.exception("token_refresh_crashed", extra={"spotify_user_id": spotify_user_id})
            return RefreshResult.FAILED
        return RefreshResult.REFRESHED if needed_refresh else RefreshResult.SKIPPED
