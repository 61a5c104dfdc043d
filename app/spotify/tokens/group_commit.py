"""Group commit: stores the results of many attempts in one transaction."""

import threading
import time
from collections.abc import Callable, Sequence

from app.models.token_refresh import Outcome
from app.spotify.tokens.results import Result

# How long the first result waits for others. With the COMMIT itself, less than 50 ms.
WAIT_SECONDS = 0.03
# With this many results, it does not wait for more.
FULL_BATCH = 64


class GroupCommit:
    """Collects results, and has a thread that stores them together.

    Args:
        store: Stores results. Must not raise.
    """

    def __init__(self, store: Callable[[Sequence[Result]], None]) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._results: list[Result] = []
        self._is_urgent = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="group-commit")
        self._thread.start()

    def add(self, result: Result) -> None:
        """Have a result stored soon. A failure is stored immediately, because the breaker has to know."""
        with self._changed:
            self._results.append(result)
            self._is_urgent |= result.outcome is not Outcome.REFRESHED or len(self._results) >= FULL_BATCH
            if self._is_urgent or len(self._results) == 1:
                self._changed.notify()

    def close(self) -> None:
        """Store what is left, and end the thread. No more results may be added."""
        with self._changed:
            self._is_urgent = self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while results := self._next():
            self._store(results)

    def _next(self) -> list[Result]:
        """Wait for results. Returns an empty list at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._is_closed)
            until = time.monotonic() + WAIT_SECONDS
            self._changed.wait_for(lambda: self._is_urgent, max(0.0, until - time.monotonic()))
            results, self._results = self._results, []
            self._is_urgent = self._is_closed
            return results
