"""A bulkhead for accounts.spotify.com: while it is slow, few of a worker's threads wait for it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

from app.errors import SpotifyUnavailable
from app.spotify.clients.capacity import accounts_waiters

T = TypeVar("T")

# While the service responds within 2 s, every caller may wait for its result. A call that takes longer than
# this is slow; a busy machine may notice a response late.
SLOW_SECONDS = 2.25
# A wait that takes longer is for a slow call, which another process may make. The difference is what locks
# and the database may add to a call.
SLOW_WAIT_SECONDS = 2.75
# The service counts as slow for this long after something was.
REMEMBERED_SECONDS = 5.0
# How often a waiting thread looks whether the service has become slow.
_SLICE_SECONDS = 0.2


class AccountsBusy(SpotifyUnavailable):
    """The service is slow, and enough threads are waiting for it."""

    detail = "Spotify's accounts service responds slowly, and enough requests wait for it. Try again shortly."
    retry_after = 2


class AccountsBulkhead:
    """Counts the threads that wait for the accounts service, whatever they wait for: the refresh of a
    token, the exchange of a code, or another callback's exchange.

    Once a call or a wait has taken too long, the service counts as slow. From then on, threads beyond half
    of `threads` are released, and later callers are turned away immediately.

    An exchange cannot be released: its thread makes the call. So no more than half of `threads`
    exchange codes at any time, and a queue that is smaller than that waits for a place.
    """

    def __init__(self, threads: int) -> None:
        self._limit = max(1, threads // 2)
        self._most = accounts_waiters(threads)
        self._queue_limit = self._limit * 3 // 4
        self._changed = threading.Condition()
        self._waiting: set[Waiter] = set()
        self._late_at: dict[object, float] = {}  # when a call or a wait that goes on becomes slow
        self._exchanging = self._queued = 0
        self._slow_until = 0.0

    @contextmanager
    def waiting(self) -> Iterator["Waiter"]:
        """Count the calling thread as waiting while the block runs.

        Raises:
            AccountsBusy: the service is slow, and enough threads wait for it.
        """
        with self._admitted() as waiter, self._timed(SLOW_WAIT_SECONDS):
            yield waiter

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Hold a place for the exchange of a code, which the block makes.

        Raises:
            AccountsBusy: no place became free in time. The block did not run.
        """
        with self._admitted() as waiter:
            self._take_place(waiter)
            try:
                with self.calling():
                    yield
            finally:
                with self._changed:
                    self._exchanging -= 1
                    self._changed.notify()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Time a call to the service, which the block makes."""
        with self._timed(SLOW_SECONDS):
            yield

    def release_excess(self, waiter: "Waiter") -> None:
        """End this thread's wait if the service is slow and more threads wait for it than may.

        Raises:
            AccountsBusy
        """
        with self._changed:
            if len(self._waiting) > self._limit and self._is_slow():
                self._waiting.remove(waiter)  # now, so that no more than the excess are released
                raise AccountsBusy

    @contextmanager
    def _admitted(self) -> Iterator["Waiter"]:
        waiter = Waiter(self)
        with self._changed:
            if len(self._waiting) >= (self._limit if self._is_slow() else self._most):
                raise AccountsBusy
            self._waiting.add(waiter)
        try:
            yield waiter
        finally:
            with self._changed:
                self._waiting.discard(waiter)

    @contextmanager
    def _timed(self, seconds: float) -> Iterator[None]:
        """Let the service count as slow once the block takes longer than this."""
        what = object()
        with self._changed:
            self._late_at[what] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._changed:
                self._is_slow()  # this block may have shown it
                del self._late_at[what]

    def _take_place(self, waiter: "Waiter") -> None:
        deadline = time.monotonic() + SLOW_WAIT_SECONDS
        with self._changed:
            if self._exchanging >= self._limit and self._queued >= self._queue_limit:
                raise AccountsBusy
            self._queued += 1
            try:
                while self._exchanging >= self._limit:
                    if time.monotonic() >= deadline:
                        raise AccountsBusy
                    self.release_excess(waiter)
                    self._changed.wait(_SLICE_SECONDS)
                self._exchanging += 1
            finally:
                self._queued -= 1

    def _is_slow(self) -> bool:
        now = time.monotonic()
        if now > min(self._late_at.values(), default=now):
            self._slow_until = now + REMEMBERED_SECONDS
        return now < self._slow_until


class Waiter:
    """A thread that waits for the accounts service, and can be released."""

    def __init__(self, bulkhead: AccountsBulkhead) -> None:
        self._bulkhead = bulkhead

    def require_place(self) -> None:
        """Go on waiting, unless the service is slow and more threads wait for it than may.

        Raises:
            AccountsBusy
        """
        self._bulkhead.release_excess(self)

    def result(self, future: "Future[T]", seconds: float) -> T:
        """Wait for a result, for this long at most.

        Raises:
            AccountsBusy: this thread is released.
            TimeoutError: there is no result yet.
        """
        deadline = time.monotonic() + seconds
        while not future.done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.require_place()
            wait([future], min(left, _SLICE_SECONDS))
        return future.result()
