"""ConnectGuard: who connects, and who waits, while a server is down."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from app.resilience.connect_guard import ConnectGuard
from tests.helpers.servers import eventually

BUSY = ConnectionError("another thread is trying")
LONG = 30.0


class Server:
    """Counts the callers that are connecting. `settle` ends one attempt; `settle(True)` accepts it."""

    def __init__(self) -> None:
        self.trying = 0
        self._outcomes: list[bool] = []
        self._changed = threading.Condition()

    def connect(self) -> str:
        with self._changed:
            self.trying += 1
            self._changed.wait_for(lambda: self._outcomes, timeout=LONG)
            self.trying -= 1
            if self._outcomes.pop():
                return "connected"
        raise TimeoutError

    def settle(self, *outcomes: bool) -> None:
        with self._changed:
            self._outcomes += outcomes
            self._changed.notify_all()


@pytest.fixture
def server() -> Server:
    return Server()


class CountingCondition(threading.Condition):
    """A condition that counts the threads that wait for it."""

    waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self.waiting -= 1


def callers(guard: ConnectGuard, connect: Callable[[], str], count: int) -> list["Future[str]"]:
    pool = ThreadPoolExecutor(count)
    calls = [pool.submit(guard.connect, connect, BUSY) for _ in range(count)]
    pool.shutdown(wait=False)
    return calls


def test_callers_connect_concurrently_while_the_server_is_up(server: Server) -> None:
    calls = callers(ConnectGuard(LONG, LONG), server.connect, 4)
    eventually(lambda: server.trying == 4)
    server.settle(*[True] * 4)
    assert [caller.result() for caller in calls] == ["connected"] * 4


def test_callers_wait_for_the_first_attempt_after_a_connection_broke(
    server: Server,
) -> None:
    guard = ConnectGuard(0, LONG)  # with 0, callers do not wait for a server that is down
    guard.report_failure()
    calls = callers(guard, server.connect, 4)
    eventually(lambda: server.trying == 1)
    server.settle(*[True] * 4)
    assert [caller.result() for caller in calls] == ["connected"] * 4


def test_caller_that_waited_for_a_failed_attempt_does_not_retry(server: Server) -> None:
    guard = ConnectGuard(0, LONG)
    guard.report_failure()
    guard._changed = changed = CountingCondition()
    calls = callers(guard, server.connect, 4)
    eventually(lambda: server.trying == 1 and changed.waiting == 3)
    server.settle(False)  # one attempt; a second one would hang
    errors = [caller.exception() for caller in calls]
    assert sorted(type(error).__name__ for error in errors) == ["ConnectionError"] * 3 + ["TimeoutError"]


def test_only_one_caller_connects_while_the_server_is_down(server: Server) -> None:
    guard = ConnectGuard(0, LONG)
    server.settle(False)
    with pytest.raises(TimeoutError):
        guard.connect(server.connect, BUSY)
    guard.report_failure()  # it is already known to be down, so no caller waits
    [first] = callers(guard, server.connect, 1)
    eventually(lambda: server.trying == 1)
    with pytest.raises(ConnectionError):
        guard.connect(server.connect, BUSY)
    server.settle(True)
    assert first.result() == "connected"
    server.settle(True)
    assert guard.connect(server.connect, BUSY) == "connected"


def test_rejection_by_the_server_does_not_affect_other_callers(server: Server) -> None:
    def refuse() -> str:
        raise ValueError("too many connections")

    guard = ConnectGuard(0, LONG, lambda error: isinstance(error, ValueError))
    with pytest.raises(ValueError, match="too many"):
        guard.connect(refuse, BUSY)

    calls = callers(guard, server.connect, 4)
    eventually(lambda: server.trying == 4)  # concurrently, because the server is up
    server.settle(*[True] * 4)
    assert [caller.result() for caller in calls] == ["connected"] * 4
