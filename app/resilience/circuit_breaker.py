"""A circuit breaker: stops calling a service that keeps failing, except for one trial call at a time."""

import threading
import time
from collections.abc import Hashable

# Consecutive failures that open the breaker. If all are a single caller's, they may be that caller's
# fault, so it takes more of them.
FAILURES, FAILURES_OF_ONE = 5, 15
PAUSE_SECONDS = 5.0


class CircuitBreaker:
    """Opens after enough consecutive failures. Each process has its own.

    While it is open, one call every `PAUSE_SECONDS` may go through (half-open). Its success closes the
    breaker.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._callers: set[Hashable] = set()
        self._is_open = False
        self._next_trial = 0.0

    def retry_after(self) -> float:
        """Return how many seconds to wait before calling: 0 means now.

        If the breaker is half-open, this claims the trial call.
        """
        with self._lock:
            if not self._is_open:
                return 0
            now = time.monotonic()
            if now < self._next_trial:
                return self._next_trial - now
            self._next_trial = now + PAUSE_SECONDS
            return 0

    @property
    def is_open(self) -> bool:
        """Whether calls would have to wait. Does not claim the trial call, as `retry_after` does."""
        with self._lock:
            return self._is_open and time.monotonic() < self._next_trial

    def record_success(self) -> None:
        """Close the breaker, and forget earlier failures."""
        with self._lock:
            self._failures, self._is_open = 0, False
            self._callers.clear()

    def record_failure(self, caller: Hashable) -> bool:
        """Count a failure. Returns whether it opened the breaker."""
        with self._lock:
            was_open = self._is_open
            self._failures += 1
            self._callers.add(caller)
            threshold = FAILURES if len(self._callers) > 1 else FAILURES_OF_ONE
            self._is_open = was_open or self._failures >= threshold
            if self._is_open:
                self._next_trial = time.monotonic() + PAUSE_SECONDS
            return self._is_open and not was_open
