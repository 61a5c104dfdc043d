"""The way to a server that may be away, and who waits for whom before it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from app.resilience.connect_guard import ConnectGuard
from tests.helpers.servers import eventually

REFUSAL = ConnectionError("another thread is trying")
LONG = 30.0


class Server:
    """Counts who is trying to connect, and lets them go on one by one: `settle(True)` is an answer."""

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


class Turn:
    """A lock that counts who has asked for it."""

    def __init__(self) -> None:
        self.asked = 0
        self._lock = threading.Lock()

    def acquire(self, timeout: float) -> bool:
        self.asked += 1
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()


def callers(door: ConnectGuard, connect: Callable[[], str], count: int) -> list["Future[str]"]:
    pool = ThreadPoolExecutor(count)
    asked = [pool.submit(door.go, connect, REFUSAL) for _ in range(count)]
    pool.shutdown(wait=False)
    return asked


def test_all_connect_at_once_while_the_server_answers(server: Server) -> None:
    asked = callers(ConnectGuard(LONG, LONG), server.connect, 4)
    eventually(lambda: server.trying == 4)
    server.settle(*[True] * 4)
    assert [caller.result() for caller in asked] == ["connected"] * 4


def test_after_a_broken_connection_nobody_is_refused_before_it_is_known_that_the_server_is_away(
    server: Server,
) -> None:
    door = ConnectGuard(0, LONG)  # where it is known to be away, nobody would wait
    door.doubt()
    asked = callers(door, server.connect, 4)
    eventually(lambda: server.trying == 1)
    server.settle(*[True] * 4)
    assert [caller.result() for caller in asked] == ["connected"] * 4


def test_who_has_waited_for_a_try_that_failed_does_not_try_once_more(server: Server) -> None:
    door = ConnectGuard(0, LONG)
    door.doubt()
    door._turn = turn = Turn()  # type: ignore[assignment]
    asked = callers(door, server.connect, 4)
    eventually(lambda: server.trying == 1 and turn.asked == 4)
    server.settle(False)  # one try; another one would wait for an outcome
    errors = [caller.exception() for caller in asked]
    assert sorted(type(error).__name__ for error in errors) == ["ConnectionError"] * 3 + ["TimeoutError"]


def test_while_the_server_is_away_one_tries_and_the_others_are_refused(server: Server) -> None:
    door = ConnectGuard(0, LONG)
    server.settle(False)
    with pytest.raises(TimeoutError):
        door.go(server.connect, REFUSAL)
    door.doubt()  # no news: the patience stays short
    [first] = callers(door, server.connect, 1)
    eventually(lambda: server.trying == 1)
    with pytest.raises(ConnectionError):
        door.go(server.connect, REFUSAL)
    server.settle(True)
    assert first.result() == "connected"
    server.settle(True)
    assert door.go(server.connect, REFUSAL) == "connected"


def test_an_answer_of_the_server_refuses_nobody_else(server: Server) -> None:
    def refuse() -> str:
        raise ValueError("too many connections")

    door = ConnectGuard(0, LONG, lambda error: isinstance(error, ValueError))
    with pytest.raises(ValueError, match="too many"):
        door.go(refuse, REFUSAL)

    asked = callers(door, server.connect, 4)
    eventually(lambda: server.trying == 4)  # all at once, as while the server answers
    server.settle(*[True] * 4)
    assert [caller.result() for caller in asked] == ["connected"] * 4
