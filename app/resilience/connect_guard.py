"""While a server is down, let one thread at a time try to reconnect."""

import threading
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class _State(Enum):
    OPEN = "the server answers"
    IN_DOUBT = "a connection broke; whether the server is away, the next try will tell"
    SHUT = "the last try failed"


class ConnectGuard:
    """Against a stalled server, each attempt to connect takes its whole timeout. If all threads were busy
    with that, requests would queue for a thread, and be answered much later than any of them.

    A caller waits for another one's attempt: `doubt_seconds` while it is unknown whether the server is
    down (at least an attempt's own timeout), and `turn_seconds` once it is known to be.

    An error for which `is_answer` is true comes from the server itself, such as "too many connections".
    It is raised to its own caller and closes the door to no one else.
    """

    def __init__(
        self,
        turn_seconds: float,
        doubt_seconds: float,
        is_answer: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._patience = {_State.SHUT: turn_seconds, _State.IN_DOUBT: doubt_seconds}
        self._is_answer = is_answer
        self._state = _State.OPEN
        self._turn = threading.Lock()

    def doubt(self) -> None:
        """A connection broke. Perhaps only this one; the next caller who needs a new one will know."""
        if self._state is _State.OPEN:
            self._state = _State.IN_DOUBT

    def go(self, connect: Callable[[], T], refusal: Exception) -> T:
        """Connect. While the server is away, and another thread is at it, raises the refusal."""
        found = self._state
        if found is _State.OPEN:
            return self._try(connect)
        if self._turn.acquire(timeout=self._patience[found]):
            try:
                if self._state is _State.SHUT and found is _State.IN_DOUBT:
                    raise refusal  # somebody has just tried, and this caller has waited for it
                if self._state is not _State.OPEN:
                    return self._try(connect)
            finally:
                self._turn.release()
        elif self._state is not _State.OPEN:
            raise refusal
        return self._try(connect)  # it is back, so nobody need wait for anybody

    def _try(self, connect: Callable[[], T]) -> T:
        try:
            connection = connect()
        except Exception as error:
            self._state = _State.OPEN if self._is_answer(error) else _State.SHUT
            raise
        self._state = _State.OPEN
        return connection
