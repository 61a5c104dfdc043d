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
# A wait for a call that is not slow ends within this time, with what locks and the database can add to it.
LONG_WAIT_SECONDS = 2.75
# The service counts as slow for this long after a slow call.
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
    has taken too long, the service counts as slow. From then on, threads beyond half of `threads` are
    released, and later callers are rejected immediately.

    A long wait may be for another process's slow call, but also for the lease of a process that was killed.
    So no more than half of `threads` wait for long, and callers whose wait has just begun are not affected.

    An exchange cannot be released, because its thread makes the call. So no more than half of `threads`
    exchange codes at any time, and a smaller queue waits for a slot.

    Each application that a user has registered, named by its `client_id`, has a smaller share of its own. If
    Spotify is slow for it, the service does not count as slow for others.
    """

    def __init__(self, threads: int) -> None:
        self._slots = max(1, threads // 2)
        self._max_waiters = accounts_waiters(threads)
        self._changed = threading.Condition()
        self._deployment = _Share(self._slots, self._max_waiters)
        self._own: dict[str, _Share] = {}  # those in use

    @contextmanager
    def waiting(self, client_id: str | None = None) -> Iterator["Waiter"]:
        """Count the calling thread as waiting while the block runs.

        Raises:
            AccountsBusy: The service is slow, and the maximum number of threads is waiting for it.
        """
        with self._admitted(client_id) as waiter:
            yield waiter

    @contextmanager
    def exchanging(self, client_id: str | None = None) -> Iterator[None]:
        """Hold a slot for the exchange of a code, which the block makes.

        Raises:
            AccountsBusy: No slot became free in time. The block did not run.
        """
        with self._admitted(client_id) as waiter:
            self._acquire_slot(waiter)
            try:
                with self.calling(client_id):
                    yield
            finally:
                with self._changed:
                    waiter.share.exchanging -= 1
                    self._changed.notify_all()

    @contextmanager
    def calling(self, client_id: str | None = None) -> Iterator[None]:
        """Time a call to the service, which the block makes. A slow one makes the service count as slow."""
        key = object()
        with self._changed:
            share = self._share_of(client_id)
            share.slow_at[key] = time.monotonic() + SLOW_SECONDS
        try:
            yield
        finally:
            with self._changed:
                now = time.monotonic()
                if now > share.slow_at.pop(key):
                    share.slow_until = now + REMEMBERED_SECONDS

    def release_excess(self, waiter: "Waiter") -> None:
        """Release a thread if the service is slow, or the thread has waited for long, and too many such wait.

        Raises:
            AccountsBusy: The thread is released: it must stop waiting.
        """
        with self._changed:
            share = waiter.share
            limited = share.waiters if share.is_slow() else share.long_waiters()
            if waiter in limited and len(limited) > share.slots:
                share.waiters.remove(waiter)  # now, so that only the excess is released
                raise AccountsBusy

    def _share_of(self, client_id: str | None) -> "_Share":
        """Return the share of a user's application, or the deployment's. Forgets those not in use."""
        if client_id is None:
            return self._deployment
        if client_id not in self._own:
            self._own = {known: share for known, share in self._own.items() if share.is_in_use()}
            self._own[client_id] = _Share(max(1, self._slots // 2), self._max_waiters // 4)
        return self._own[client_id]

    @contextmanager
    def _admitted(self, client_id: str | None) -> Iterator["Waiter"]:
        with self._changed:
            share = self._share_of(client_id)
            if len(share.waiters) >= (share.slots if share.is_slow() else share.max_waiters):
                raise AccountsBusy
            own_waiters = sum(len(other.waiters) for other in self._own.values())
            # Half of the threads are left to the deployment's application.
            if share is not self._deployment and own_waiters >= self._max_waiters // 2:
                raise AccountsBusy
            if len(self._deployment.waiters) + own_waiters >= self._max_waiters:
                raise AccountsBusy
            waiter = Waiter(self, share)
            share.waiters.add(waiter)
        try:
            yield waiter
        finally:
            with self._changed:
                share.waiters.discard(waiter)

    def _acquire_slot(self, waiter: "Waiter") -> None:
        deadline, share = time.monotonic() + LONG_WAIT_SECONDS, waiter.share
        with self._changed:
            if not self._has_free_slot(share) and share.queued >= share.slots * 3 // 4:
                raise AccountsBusy
            share.queued += 1
            try:
                while not self._has_free_slot(share):
                    if time.monotonic() >= deadline:
                        raise AccountsBusy
                    self.release_excess(waiter)
                    self._changed.wait(_SLICE_SECONDS)
                share.exchanging += 1
            finally:
                share.queued -= 1

    def _has_free_slot(self, share: "_Share") -> bool:
        """Return whether a code can be exchanged now. Users' applications together have as many slots."""
        together = 0 if share is self._deployment else sum(other.exchanging for other in self._own.values())
        return share.exchanging < share.slots and together < self._slots


class _Share:
    """The part of a bulkhead that an application can use, and what it uses of that."""

    def __init__(self, slots: int, max_waiters: int) -> None:
        self.slots = slots
        self.max_waiters = max_waiters
        self.waiters: set[Waiter] = set()
        self.slow_at: dict[object, float] = {}  # when each call in progress becomes slow
        self.exchanging = self.queued = 0
        self.slow_until = 0.0

    def is_slow(self) -> bool:
        """Return whether a call in progress is slow, or one was recently."""
        now = time.monotonic()
        return now < self.slow_until or now > min(self.slow_at.values(), default=now)

    def long_waiters(self) -> "set[Waiter]":
        """Return the threads that have been waiting for long."""
        return {waiter for waiter in self.waiters if waiter.is_long()}

    def is_in_use(self) -> bool:
        """Return whether it has to be remembered."""
        return bool(self.waiters or self.slow_at or self.exchanging) or self.is_slow()


class Waiter:
    """A thread that waits for the accounts service, and can be released."""

    def __init__(self, bulkhead: AccountsBulkhead, share: _Share) -> None:
        self._bulkhead = bulkhead
        self.share = share
        self._long_at = time.monotonic() + LONG_WAIT_SECONDS

    def is_long(self) -> bool:
        """Return whether the wait has taken longer than one for a call that is not slow."""
        return time.monotonic() > self._long_at

    def require_capacity(self) -> None:
        """Require that this thread can continue to wait.

        Raises:
            AccountsBusy: Too many threads wait for a slow service, or for long.
        """
        self._bulkhead.release_excess(self)

    def result(self, future: "Future[T]", timeout: float) -> T:
        """Wait for a result.

        Raises:
            AccountsBusy: Too many threads wait for a slow service, or for long.
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
