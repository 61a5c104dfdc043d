"""One pass over the connections that are due: refreshes their tokens ahead of time.

The pass claims grants in batches, makes the calls in a fixed number of threads, and stores the results with
group commit. docs/custody.md explains why this is as safe as one refresh at a time.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from flask import Flask

from app.errors import DEPENDENCY_DOWN, SpotifyUnavailable
from app.infra import database
from app.models.token_refresh import Outcome
from app.resilience.rate_limiter import RateLimiter
from app.spotify.clients.application import ALL_KINDS, ApplicationKind, deployment_application
from app.spotify.tokens import batch_claims, breaker, completions, refresh_queue
from app.spotify.tokens.batch_claims import BatchClaims, Claim
from app.spotify.tokens.completions import Completion
from app.spotify.tokens.group_commit import GroupCommit
from app.spotify.tokens.prefetch import Prefetch
from app.spotify.tokens.refresh import Refresher
from app.spotify.tokens.results import Result
from config import Config

log = logging.getLogger(__name__)

# How much of the shared rate to reserve at once.
RESERVED_SECONDS = 0.25
# How many results that could not be stored together are stored at the same time.
_STORING_THREADS = 8


@dataclass
class RefreshStats:
    """How many connections a pass has refreshed, and how many it could not refresh."""

    refreshed: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """The connections that needed a refresh."""
        return self.refreshed + self.failed


class RefreshPass:
    """Refreshes every connection that is due, next to expire first, with a fixed number of threads.

    Any number of passes may share the work. `limiter` bounds the rate of all of them together.
    """

    def __init__(
        self,
        app: Flask,
        config: Config,
        refresher: Refresher,
        claims: BatchClaims,
        limiter: RateLimiter,
        stopping: threading.Event,
    ) -> None:
        self._app = app
        self._refresher = refresher
        self._claims = claims
        self._limiter = limiter
        self._stopping = stopping  # set when the process ends
        self._ending = threading.Event()  # set when this pass ends early
        self._lacks_application = deployment_application(config) is None
        self._workers = config.refresh_workers
        self._interval = 1 / config.refresh_rate
        self._max_reserved = max(1, int(RESERVED_SECONDS * config.refresh_rate))
        self._prefetch = Prefetch(config.refresh_workers)
        # Claims and when their calls may start. None ends a worker.
        self._ready: queue.SimpleQueue[tuple[Claim, float] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._unfinished = 0  # claims whose results are not stored
        self._uncounted: set[Result] = set()  # failures
        self._abandoned: list[Claim] = []
        self._paused: frozenset[ApplicationKind] = frozenset()  # by the breaker
        self._stats = RefreshStats()
        self._failure: Exception | None = None
        self._progress: Callable[[RefreshStats], None] = lambda _: None

    def run(self, progress: Callable[[RefreshStats], None]) -> RefreshStats:
        """Run the pass, and call `progress` after each connection that needed a refresh.

        If the breaker opens for a kind of application (`app.spotify.tokens.breaker`), no more grants of that
        kind are refreshed.

        Raises:
            Exception: One of `DEPENDENCY_DOWN`. The pass has ended, without further calls to Spotify.
        """
        self._progress = progress
        with self._app.app_context():
            refresh_queue.correct_due_times()
            if self._lacks_application:
                breaker.close_unused(ApplicationKind.DEPLOYMENT)
            due_by = database.read_db_now()
            with ThreadPoolExecutor(_STORING_THREADS, thread_name_prefix="store") as self._storing:
                self._run_workers(due_by)
            batch_claims.abandon(self._abandoned)
        if self._failure is not None:
            raise self._failure
        return self._stats

    def _run_workers(self, due_by: datetime) -> None:
        self._commits = GroupCommit(self._store)
        workers: list[threading.Thread] = []
        try:
            for number in range(self._workers):
                worker = threading.Thread(target=self._work, name=f"refresh-{number}")
                worker.start()
                workers.append(worker)
            self._claim_all(due_by)
        except DEPENDENCY_DOWN as error:
            self._fail(error)
        finally:
            for _ in workers:
                self._ready.put(None)
            for worker in workers:
                worker.join()
            self._commits.close()

    def _claim_all(self, due_by: datetime) -> None:
        waiting: set[ApplicationKind] = set()  # for a probe of their breaker
        may_close = False
        while not self._is_over():
            if kinds := ALL_KINDS - self._paused - waiting:
                room = min(self._prefetch.room(), self._max_reserved)
                if not room:
                    continue
                delay = self._limiter.reserve(room)
                start_at = time.monotonic() + delay  # no earlier than the slot, however slow Redis is
                if self._stopping.wait(start_at - time.monotonic()) or self._is_over():
                    return
                was_idle = not self._unfinished
                batch = self._claims.claim(room, due_by, kinds)
                self._start(batch.claims, start_at)
                self._count(failed=batch.unusable)
                waiting |= batch.paused
                may_close |= bool(batch.paused) and not was_idle
                if batch.claims or batch.postponed or batch.paused:
                    continue
            if not may_close:
                return
            self._wait_until_finished()  # the calls that are running may close the breaker
            waiting, may_close = set(), False

    def _start(self, claims: Sequence[Claim], start_at: float) -> None:
        self._prefetch.started(len(claims))
        with self._changed:
            self._unfinished += len(claims)
        for number, claim in enumerate(claims):
            self._ready.put((claim, start_at + number * self._interval))

    def _work(self) -> None:
        """Make calls, each when the rate limit allows it, until the pass ends."""
        while (found := self._ready.get()) is not None:
            result = self._call(*found)
            if result is None:
                self._finished(1)
            elif result.error is None:
                self._commits.add(result)
            else:
                self._wait_until_counted(result)
            self._prefetch.ended()

    def _wait_until_counted(self, failure: Result) -> None:
        """Store a failure, and make no call in this thread before the breaker has counted it."""
        with self._changed:
            self._uncounted.add(failure)
        self._commits.add(failure)
        with self._changed:
            self._changed.wait_for(lambda: failure not in self._uncounted)

    def _call(self, claim: Claim, start_at: float) -> Result | None:
        remaining = start_at - time.monotonic()
        if remaining > 0:
            self._stopping.wait(remaining)
        if self._is_over() or claim.kind in self._paused:
            with self._changed:
                self._abandoned.append(claim)
            return None
        try:
            return self._refresher.call(claim.row, claim.attempt, claim.application, claim.refresh_token)
        except SpotifyUnavailable:  # too late for a call; the claim ends with its lease
            return None
        except Exception:
            # An unexpected error about one connection must not end the pass for the others.
            log.exception("token_refresh_crashed", extra={"spotify_user_id": claim.row.spotify_user_id})
            self._count(failed=1)
            return None

    def _store(self, results: Sequence[Result]) -> None:
        """Store results together, and those alone for which that is not possible."""
        stored: Mapping[Result, Completion] = {}
        with self._app.app_context():
            try:
                stored = completions.finish_together(results)
            except Exception as error:  # noqa: BLE001 - raised when the pass ends
                self._fail(error)
            self._conclude(stored)
        for result in results:
            if result not in stored:
                self._storing.submit(self._store_alone, result)

    def _store_alone(self, result: Result) -> None:
        with self._app.app_context():
            try:
                completion = completions.finish(result)
            except Exception as error:
                if isinstance(error, DEPENDENCY_DOWN):
                    self._fail(error)
                else:
                    spotify_user_id = result.row.spotify_user_id
                    log.exception("token_refresh_crashed", extra={"spotify_user_id": spotify_user_id})
                    self._count(failed=1)
                self._finished(1, [result])
            else:
                self._conclude({result: completion})

    def _conclude(self, completions: Mapping[Result, Completion]) -> None:
        """Let the breaker count outcomes that are stored. If it opens, no more calls are started."""
        try:
            self._refresher.observe(completions)
            failed = sum(
                result.error is not None and completion.outcome is not Outcome.SUPERSEDED
                for result, completion in completions.items()
            )
            if failed and not self._is_over():
                self._pause(breaker.paused_kinds())
            self._count(refreshed=sum(result.error is None for result in completions), failed=failed)
        except Exception as error:  # noqa: BLE001 - raised when the pass ends
            self._fail(error)
        finally:
            self._finished(len(completions), completions)

    def _count(self, *, refreshed: int = 0, failed: int = 0) -> None:
        with self._changed:
            for _ in range(refreshed):
                self._stats.refreshed += 1
                self._progress(self._stats)
            for _ in range(failed):
                self._stats.failed += 1
                self._progress(self._stats)

    def _finished(self, count: int, results: Iterable[Result] = ()) -> None:
        with self._changed:
            self._unfinished -= count
            self._uncounted.difference_update(results)
            self._changed.notify_all()

    def _wait_until_finished(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished)

    def _pause(self, kinds: set[ApplicationKind]) -> None:
        """Refresh no more grants of these kinds of applications."""
        with self._changed:
            self._paused |= kinds

    def _fail(self, error: Exception) -> None:
        """End the pass with this error."""
        self._failure = self._failure or error
        self._ending.set()

    def _is_over(self) -> bool:
        return self._ending.is_set() or self._stopping.is_set() or self._paused == ALL_KINDS
