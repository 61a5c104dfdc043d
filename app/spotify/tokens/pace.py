"""How fast a scheduler claims grants: as fast as its calls end."""

import threading
import time
from collections import deque

# Claim what can start within this time. People whose grants are claimed have to wait for it.
AHEAD_SECONDS = 0.1


class Pace:
    """How many claims to make: those that can start immediately, or soon if calls end fast."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._changed = threading.Condition()
        self._running = 0
        self._ended: deque[float] = deque()

    def started(self, count: int) -> None:
        """Count claims, whose calls are about to start."""
        with self._changed:
            self._running += count

    def ended(self) -> None:
        """Count a call that has ended."""
        with self._changed:
            self._running -= 1
            self._ended.append(time.monotonic())
            self._changed.notify()

    def room(self) -> int:
        """Wait until there is room for a batch of claims that is worthwhile. Returns its size."""
        worthwhile = max(1, self._workers // 2)
        with self._changed:
            self._changed.wait_for(lambda: self._room() >= worthwhile, AHEAD_SECONDS / 4)
            return self._room()

    def wait_for_idle(self, timeout: float) -> bool:
        """Wait until no claim is left. Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def _room(self) -> int:
        recently = time.monotonic() - AHEAD_SECONDS
        while self._ended and self._ended[0] < recently:
            self._ended.popleft()
        ahead = min(len(self._ended), self._workers)
        return max(0, self._workers + ahead - self._running)
