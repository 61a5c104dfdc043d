"""A bulkhead for the accounts service: while it is slow, few of a worker's threads wait for it."""

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
# A wait that takes longer than this is for a slow call, which may be another process's. The difference is
# what locks and the database can add to a call.
SLOW_WAIT_SECONDS = 2.75
# The service counts as slow for this long after a slow call or wait.
REMEMBERED_SECONDS = 5.0
# How often a waiting thread checks whether the service has become slow.
_SLICE_SECONDS = 0.2


class AccountsBusy(SpotifyUnavailable):
    """The accounts service is slow, and the maximum number of threads is waiting for it."""

    detail = "Spotify's accounts service responds slowly, and enough requests wait for it. Try again shortly."
    retry_after = 2


class AccountsBulkhead:
    """Limits the threads that wait for the accounts service while it is slow.

    They wait for the refresh of a token, the exchange of a code, or another callback's exchange. Once a call
    or a wait has taken too long, the service counts as slow. From then on, threads beyond half of `threads`
    are released, and later callers are rejected immediately.

    An exchange cannot be released, because its thread makes the call. So no more than half of `threads`
    exchange codes at any time, and a smaller queue waits for a slot.
    """

    def __init__(self, threads: int) -> None:
        self._slots = max(1, threads // 2)
        self._max_waiters = accounts_waiters(threads)
        self._max_queued = self._slots * 3 // 4
        self._changed = threading.Condition()
        self._waiters: set[Waiter] = set()
        self._slow_at: dict[object, float] = {}  # when each call or wait in progress becomes slow
        self._exchanging = self._queued = 0
        self._slow_until = 0.0

    @contextmanager
    def waiting(self) -> Iterator["Waiter"]:
        """Count the calling thread as waiting while the block runs.

        Raises:
            AccountsBusy: The service is slow, and the maximum number of threads is waiting for it.
        """
        with self._admitted() as waiter, self._timed(SLOW_WAIT_SECONDS):
            yield waiter

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Hold a slot for the exchange of a code, which the block makes.

        Raises:
            AccountsBusy: No slot became free in time. The block did not run.
        """
        with self._admitted() as waiter:
            self._acquire_slot(waiter)
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
        """Release a thread if the service is slow and too many threads wait for it.

        Raises:
            AccountsBusy: The thread is released: it must stop waiting.
        """
        with self._changed:
            if len(self._waiters) > self._slots and self._is_slow():
                self._waiters.remove(waiter)  # now, so that only the excess is released
                raise AccountsBusy

    @contextmanager
    def _admitted(self) -> Iterator["Waiter"]:
        waiter = Waiter(self)
        with self._changed:
            if len(self._waiters) >= (self._slots if self._is_slow() else self._max_waiters):
                raise AccountsBusy
            self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            with self._changed:
                self._waiters.discard(waiter)

    @contextmanager
    def _timed(self, seconds: float) -> Iterator[None]:
        """Count the service as slow if the block takes longer than `seconds`."""
        key = object()
        with self._changed:
            self._slow_at[key] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._changed:
                now = time.monotonic()
                if now > self._slow_at.pop(key):
                    self._slow_until = now + REMEMBERED_SECONDS

    def _acquire_slot(self, waiter: "Waiter") -> None:
        deadline = time.monotonic() + SLOW_WAIT_SECONDS
        with self._changed:
            if self._exchanging >= self._slots and self._queued >= self._max_queued:
                raise AccountsBusy
            self._queued += 1
            try:
                while self._exchanging >= self._slots:
                    if time.monotonic() >= deadline:
                        raise AccountsBusy
                    self.release_excess(waiter)
                    self._changed.wait(_SLICE_SECONDS)
                self._exchanging += 1
            finally:
                self._queued -= 1

    def _is_slow(self) -> bool:
        """Return whether a call or wait in progress is slow, or one was recently."""
        now = time.monotonic()
        return now < self._slow_until or now > min(self._slow_at.values(), default=now)


class Waiter:
    """A thread that waits for the accounts service, and can be released."""

    def __init__(self, bulkhead: AccountsBulkhead) -> None:
        self._bulkhead = bulkhead

    def require_capacity(self) -> None:
        """Require that this thread can continue to wait.

        Raises:
            AccountsBusy: The service is slow, and too many threads wait for it.
        """
        self._bulkhead.release_excess(self)

    def result(self, future: "Future[T]", timeout: float) -> T:
        """Wait for a result.

        Raises:
            AccountsBusy: The service is slow, and too many threads wait for it.
            TimeoutError: There is no result after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not future.done():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self.require_capacity()
            wait([future], min(remaining, _SLICE_SECONDS))
        return future.result()
