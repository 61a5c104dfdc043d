"""A worker's thread handles requests that follow each other at once on one connection (deploy/worker.py)."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from gunicorn.config import Config as GunicornConfig  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn  # type: ignore[import-untyped]

from deploy import worker as worker_module
from deploy.worker import Worker
from tests.helpers.servers import LONG

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection:
    """A connection to a worker, and the job of its pool that handles it."""

    def __init__(self, worker: Worker, connections: ExitStack) -> None:
        ours, self.client = map(connections.enter_context, socket.socketpair())
        self.client.settimeout(LONG)
        self._worker = worker
        self._connection = TConn(worker.cfg, ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
        self.handle()

    def handle(self) -> None:
        """Let the pool handle the connection, as the main thread does when a request arrives."""
        self.job = self._worker.tpool.submit(self._worker.handle, self._connection)

    def become_busy(self) -> None:
        """Exchange a first request, and let the pool handle a second one that follows at once."""
        self.exchange()
        assert self.job.result(LONG) is True
        self.handle()

    def exchange(self) -> None:
        self.client.sendall(REQUEST)
        response = b""
        while not response.endswith(b"\r\n\r\n{}"):
            received = self.client.recv(4096)
            assert received, "the connection is closed"
            response += received


Connect = Callable[[], Connection]


def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker with a pool of one thread, without its main thread."""
    config = GunicornConfig()
    made = Worker(1, os.getpid(), [], None, 30, config, Logger(config))
    made.wsgi, made.tpool = application, ThreadPoolExecutor(1)
    yield made
    made.tpool.shutdown()
    made.tmp.close()


@pytest.fixture
def connect(worker: Worker) -> Iterator[Connect]:
    """Opens connections to the worker."""
    with ExitStack() as connections:
        yield lambda: Connection(worker, connections)


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for the next request as long as it takes."""
    monkeypatch.setattr(worker_module, "NEXT_REQUEST_MS", int(LONG * 1000))


@pytest.mark.usefixtures("no_limit")
def test_thread_handles_the_next_request_without_the_main_thread(worker: Worker, connect: Connect) -> None:
    connection = connect()
    connection.become_busy()
    for _ in range(3):
        connection.exchange()
    assert not connection.job.done()
    connection.client.close()

    assert connection.job.result(LONG) is False  # for the main thread: close it
    assert worker.nr == 4


@pytest.mark.usefixtures("no_limit")
def test_busy_connection_returns_to_the_main_thread_when_it_is_idle(
    worker: Worker, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit_next(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        monkeypatch.setattr(worker_module, "NEXT_REQUEST_MS", 50)
        return application(environ, start_response)

    connection = connect()
    connection.become_busy()
    worker.wsgi = limit_next
    connection.exchange()

    assert connection.job.result(LONG) is True


@pytest.mark.usefixtures("no_limit")
def test_connection_whose_requests_do_not_follow_at_once_returns_to_the_main_thread(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect()
    connection.exchange()
    assert connection.job.result(LONG) is True

    monkeypatch.setattr(worker_module, "NEXT_REQUEST_MS", 0)
    connection.handle()
    connection.exchange()
    assert connection.job.result(LONG) is True


@pytest.mark.usefixtures("no_limit")
def test_thread_does_not_wait_while_another_connection_needs_it(worker: Worker, connect: Connect) -> None:
    first = connect()
    first.exchange()
    assert first.job.result(LONG) is True
    free = threading.Event()
    worker.tpool.submit(free.wait, LONG)
    first.handle()
    second = connect()
    free.set()
    first.exchange()

    assert first.job.result(LONG) is True
    second.exchange()
    assert second.job.result(LONG) is True


@pytest.mark.usefixtures("no_limit")
def test_request_that_has_been_read_ahead_returns_to_the_main_thread(
    worker: Worker, connect: Connect
) -> None:
    connection = connect()
    connection.become_busy()
    connection.client.sendall(REQUEST + REQUEST)

    assert connection.job.result(LONG) is True
    assert worker.nr == 2


@pytest.mark.usefixtures("no_limit")
def test_connection_returns_to_the_main_thread_of_a_worker_that_stops(
    worker: Worker, connect: Connect
) -> None:
    def stop(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        worker.alive = False
        return application(environ, start_response)

    connection = connect()
    connection.become_busy()
    worker.wsgi = stop
    connection.exchange()

    assert connection.job.result(LONG) is True
