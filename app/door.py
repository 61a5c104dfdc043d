"""The way to a server that may be away: while it is, one caller at a time tries it."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Door:
    """Against a stalled server each try to connect takes its whole time-out. If all threads were busy
    with that, requests would queue for a thread, and be answered much later than any of them.

    `turn_seconds` is how long a caller waits for another one's try.
    """

    def __init__(self, turn_seconds: float) -> None:
        self._turn_seconds = turn_seconds
        self._away = False
        self._turn = threading.Lock()

    def close(self) -> None:
        """A connection broke. Perhaps only this one; the next caller who needs a new one will know."""
        self._away = True

    def go(self, connect: Callable[[], T], refusal: Exception) -> T:
        """Connect. While the server is away, and another thread is at it, raises the refusal."""
        if not self._away:
            return self._try(connect)
        if not self._turn.acquire(timeout=self._turn_seconds):
            if self._away:
                raise refusal
            return self._try(connect)
        try:
            if self._away:
                return self._try(connect)
        finally:
            self._turn.release()
        return self._try(connect)  # it is back, so nobody need wait for anybody

    def _try(self, connect: Callable[[], T]) -> T:
        try:
            connection = connect()
        except Exception:
            self._away = True
            raise
        self._away = False
        return connection
