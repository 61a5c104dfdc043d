"""While a server is down, let one thread at a time try to reconnect."""

import threading
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeVar

T = TypeVar("T")


class _State(Enum):
    UP = auto()
    SUSPECT = auto()
    """A connection broke. The next attempt shows whether the server is down."""
    DOWN = auto()


class ConnectGuard:
    """Lets callers connect freely while the server is up, and one at a time when it may be down.

    Connecting to a stalled server takes the whole timeout. If every thread did that, requests would queue
    for a thread and take far longer than any one attempt.

    Args:
        down_seconds: How long a caller waits for another one's attempt while the server is down.
        suspect_seconds: How long while it is suspect; at least the timeout of an attempt.
        is_reply: Whether an error is the server's own reply, such as "too many connections". The server
            is then up, and the error concerns only its own caller.
    """

    def __init__(
        self,
        down_seconds: float,
        suspect_seconds: float,
        is_reply: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._wait_seconds = {_State.UP: 0.0, _State.SUSPECT: suspect_seconds, _State.DOWN: down_seconds}
        self._is_reply = is_reply
        self._changed = threading.Condition()
        self._state = _State.UP
        self._has_probe = False
        """Whether a caller is finding out if the server is up again. The others wait for it."""

    def report_failure(self) -> None:
        """Mark the server as suspect, because a connection to it broke."""
        with self._changed:
            if self._state is _State.UP:
                self._state = _State.SUSPECT

    def connect(self, connect: Callable[[], T], busy_error: Exception) -> T:
        """Connect, as soon as the server is up or this caller may try.

        Raises:
            Exception: `busy_error`, if another caller's attempt failed or takes too long; otherwise whatever
                `connect` raises.
        """
        is_probe = self._enter(busy_error)
        state = None
        try:
            connection = connect()
            state = _State.UP
        except Exception as error:
            state = _State.UP if self._is_reply(error) else _State.DOWN
            raise
        finally:
            self._leave(is_probe, state)
        return connection

    def _enter(self, busy_error: Exception) -> bool:
        """Wait for permission to connect. Returns whether the caller is the probe."""
        with self._changed:
            initial = self._state
            self._changed.wait_for(
                lambda: self._state is _State.UP or not self._has_probe, self._wait_seconds[initial]
            )
            if self._state is _State.UP:
                return False
            probe_failed = initial is _State.SUSPECT and self._state is _State.DOWN
            if probe_failed or self._has_probe:
                raise busy_error
            self._has_probe = True
            return True

    def _leave(self, is_probe: bool, state: _State | None) -> None:
        with self._changed:
            self._state = state or self._state
            if is_probe:
                self._has_probe = False
            self._changed.notify_all()
