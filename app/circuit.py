"""A circuit breaker: a service that fails every time is left alone, but for a try now and then."""

import threading
import time

FAILURES = 5  # one after another
PAUSE_SECONDS = 5.0


class Circuit:
    """Counts failures in a row. From `FAILURES` on it is open: one call in `PAUSE_SECONDS` goes through
    (half-open), and its success closes it. Each process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try = 0.0

    def wait(self) -> float:
        """0 for who may call now; otherwise the seconds until the next try."""
        with self._lock:
            if self._failures < FAILURES:
                return 0
            now = time.monotonic()
            if now < self._next_try:
                return self._next_try - now
            self._next_try = now + PAUSE_SECONDS  # this caller's; the others wait for what it finds
            return 0

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0

    def failed(self) -> bool:
        """Note a failure. Returns whether it has opened the circuit."""
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES:
                self._next_try = time.monotonic() + PAUSE_SECONDS
            return self._failures == FAILURES
