"""A bulkhead: who waits for a slow service may hold some of a worker's threads, and never all of them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# What takes longer is slow. While nothing is, one may wait so long for a place, and hold a thread.
SLOW_SECONDS = 0.5


class NoPlace(Exception):
    """All places are taken."""


class Bulkhead:
    """So many places; who finds none is turned away: at once while the service is slow, and after a
    moment while it is quick and places are given back soon."""

    def __init__(self, places: int) -> None:
        self._places = threading.Semaphore(places)
        self._lock = threading.Lock()
        self._since: dict[object, float] = {}
        self._last_took = 0.0

    @contextmanager
    def place(self, *, patient: bool = True) -> Iterator[None]:
        """Hold a place while the block runs.

        Raises:
            NoPlace
        """
        if not self._take(patient):
            raise NoPlace
        held, began = object(), time.monotonic()
        with self._lock:
            self._since[held] = began
        try:
            yield
        finally:
            with self._lock:
                del self._since[held]
                self._last_took = time.monotonic() - began
            self._places.release()

    def _take(self, patient: bool) -> bool:
        until = time.monotonic() + SLOW_SECONDS
        while not self._places.acquire(timeout=0.02 if patient else 0):
            if not patient or self._is_slow() or time.monotonic() >= until:
                return False
        return True

    def _is_slow(self) -> bool:
        with self._lock:
            oldest = min(self._since.values(), default=time.monotonic())
            return max(self._last_took, time.monotonic() - oldest) > SLOW_SECONDS
