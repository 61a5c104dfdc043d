"""How many grants a scheduler claims ahead of its calls."""

import threading
import time
from collections import deque

# Claim only what can start within this time: requests for a claimed grant have to wait.
AHEAD_SECONDS = 0.1


class Prefetch:
    """Counts claims: as many may be made as calls can start immediately, or soon if calls end fast."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._changed = threading.Condition()
        self._running = 0
        self._ended: deque[float] = deque()

    def started(self, count: int) -> None:
        """Count claims. Their calls are about to start."""
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

    def _room(self) -> int:
        recently = time.monotonic() - AHEAD_SECONDS
        while self._ended and self._ended[0] < recently:
            self._ended.popleft()
        ahead = min(len(self._ended), self._workers)
        return max(0, self._workers + ahead - self._running)
