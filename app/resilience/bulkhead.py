"""A bulkhead: callers of a slow service can occupy some of a worker's threads, but never all of them."""

import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class BulkheadFull(Exception):
    """The bulkhead has no thread or slot for this caller, or none became free in time."""


class Admission:
    """One thread that a caller occupies, with or without a slot."""

    def __init__(self, caller: Hashable) -> None:
        self.caller = caller
        self.has_slot = False
        self.wants_slot = False
        self.evicted = threading.Event()  # set when another caller needed the thread more


class Bulkhead:
    """Limits the calls in progress to `slots`, and the callers that wait to `queue`.

    One caller can have half of the slots. It can also fill the queue, but when another caller needs the
    queue, its newest requests are evicted. Queued callers block threads too, so a worker needs
    `slots + queue` threads to spare.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = slots
        self._slots_per_caller = max(1, slots // 2)
        self._max_admissions = slots + queue
        self._changed = threading.Condition()
        self._admissions: list[Admission] = []  # in the order of arrival
        self._slots_of: Counter[Hashable] = Counter()
        self._slots_in_use = self._queued = 0

    @contextmanager
    def admit(self, caller: Hashable) -> Iterator[Admission]:
        """Occupy a thread while the block runs.

        Raises:
            BulkheadFull: All threads are occupied, and this caller has its fair share of them.
        """
        admission = Admission(caller)
        with self._changed:
            if len(self._admissions) >= self._max_admissions:
                self._evict_for(caller)
            self._admissions.append(admission)
        try:
            yield admission
        finally:
            with self._changed:
                self._release_slot(admission)
                if not admission.evicted.is_set():
                    self._admissions.remove(admission)
                self._changed.notify_all()

    def acquire(self, admission: Admission, *, until: float = 0.0) -> None:
        """Wait for a slot until this time (`time.monotonic`). Does nothing if the caller has one.

        Raises:
            BulkheadFull: No slot became free in time, or the caller was evicted.
        """
        with self._changed:
            if (
                not admission.has_slot
                and not admission.evicted.is_set()
                and self.has_free_slot(admission.caller)
            ):
                self._take_slot(admission)
            if not admission.has_slot:
                self._wait_for_slot(admission, until)

    def try_acquire(self, admission: Admission) -> bool:
        """Acquire a slot without waiting. Returns False if there is none."""
        try:
            self.acquire(admission)
        except BulkheadFull:
            return False
        return True

    def has_free_slot(self, caller: Hashable) -> bool:
        """Return whether this caller could acquire a slot without waiting at this moment."""
        return (
            not self._queued
            and self._slots_in_use < self._slots
            and self._slots_of[caller] < self._slots_per_caller
        )

    def pause(self, admission: Admission, seconds: float) -> None:
        """Release the slot, and wait this long for something that another caller is doing.

        Raises:
            BulkheadFull: The caller was evicted.
        """
        if admission.has_slot:
            with self._changed:
                self._release_slot(admission)
                self._changed.notify_all()
        if admission.evicted.wait(seconds):
            raise BulkheadFull

    def _wait_for_slot(self, admission: Admission, until: float) -> None:
        admission.wants_slot = True
        self._queued += 1
        try:
            while self._next() is not admission:
                remaining = until - time.monotonic()
                if admission.evicted.is_set() or remaining <= 0:
                    raise BulkheadFull
                self._changed.wait(remaining)
            self._take_slot(admission)
        finally:
            admission.wants_slot = False
            self._queued -= 1
            self._changed.notify_all()

    def _take_slot(self, admission: Admission) -> None:
        admission.has_slot = True
        self._slots_in_use += 1
        self._slots_of[admission.caller] += 1

    def _release_slot(self, admission: Admission) -> None:
        if not admission.has_slot:
            return
        admission.has_slot = False
        self._slots_in_use -= 1
        self._slots_of[admission.caller] -= 1
        if not self._slots_of[admission.caller]:
            del self._slots_of[admission.caller]

    def _next(self) -> Admission | None:
        """Return the admission that gets the next slot: the oldest of the caller with the fewest slots."""
        if self._slots_in_use >= self._slots:
            return None
        slots = self._slots_of
        eligible = [
            admission
            for admission in self._admissions
            if admission.wants_slot and slots[admission.caller] < self._slots_per_caller
        ]
        return min(eligible, key=lambda admission: slots[admission.caller], default=None)

    def _evict_for(self, caller: Hashable) -> None:
        """Evict the newest waiting admission of the caller that occupies the most threads.

        Raises:
            BulkheadFull: `caller` would occupy as many itself.
        """
        threads = Counter(admission.caller for admission in self._admissions)
        waiting = [admission for admission in self._admissions if not admission.has_slot]
        victim = max(reversed(waiting), key=lambda admission: threads[admission.caller], default=None)
        if victim is None or threads[victim.caller] <= threads[caller] + 1:
            raise BulkheadFull
        victim.evicted.set()
        self._admissions.remove(victim)
        self._changed.notify_all()
