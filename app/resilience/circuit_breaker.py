"""A circuit breaker: a service that fails every time is left alone, but for a try now and then."""

import threading
import time
from collections.abc import Hashable

# One after another, of two callers at least: one alone may have a trouble of its own. Or so many of one.
FAILURES, FAILURES_OF_ONE = 5, 15
PAUSE_SECONDS = 5.0


class CircuitBreaker:
    """Counts failures in a row. When they are enough it is open: one call in `PAUSE_SECONDS` goes through
    (half-open), and its success closes it. Each process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._callers: set[Hashable] = set()
        self._is_open = False
        self._next_try = 0.0

    def wait(self) -> float:
        """0 for who may call now; otherwise the seconds until the next try."""
        with self._lock:
            if not self._is_open:
                return 0
            now = time.monotonic()
            if now < self._next_try:
                return self._next_try - now
            self._next_try = now + PAUSE_SECONDS  # this caller's; the others wait for what it finds
            return 0

    @property
    def is_open(self) -> bool:
        """Whether a caller would have to wait now. Unlike `wait`, asking does not take the next try."""
        with self._lock:
            return self._is_open and time.monotonic() < self._next_try

    def succeeded(self) -> None:
        with self._lock:
            self._failures, self._is_open = 0, False
            self._callers.clear()

    def failed(self, caller: Hashable) -> bool:
        """Note a failure. Returns whether it has opened the circuit."""
        with self._lock:
            was_open = self._is_open
            self._failures += 1
            self._callers.add(caller)
            enough = FAILURES if len(self._callers) > 1 else FAILURES_OF_ONE
            self._is_open = was_open or self._failures >= enough
            if self._is_open:
                self._next_try = time.monotonic() + PAUSE_SECONDS
            return self._is_open and not was_open
