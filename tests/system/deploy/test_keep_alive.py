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

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection:
    """A connection to a worker, and the job of its pool that handles it."""

    def __init__(self, worker: Worker, connections: ExitStack) -> None:
        ours, self.client = map(connections.enter_context, socket.socketpair())
        self.client.settimeout(10)
        connection = TConn(worker.cfg, ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
        self.job = worker.tpool.submit(worker.handle, connection)

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
    monkeypatch.setattr(worker_module, "NEXT_REQUEST_MS", 60_000)


@pytest.mark.usefixtures("no_limit")
def test_thread_handles_the_next_request_without_the_main_thread(worker: Worker, connect: Connect) -> None:
    connection = connect()
    for _ in range(3):
        connection.exchange()
    assert not connection.job.done()
    connection.client.close()

    assert connection.job.result(10) is False  # for the main thread: close it
    assert worker.nr == 3


def test_idle_connection_returns_to_the_main_thread(connect: Connect) -> None:
    connection = connect()
    connection.exchange()

    assert connection.job.result(10) is True


@pytest.mark.usefixtures("no_limit")
def test_thread_does_not_wait_while_another_connection_needs_it(worker: Worker, connect: Connect) -> None:
    free = threading.Event()
    worker.tpool.submit(free.wait, 10)
    first, second = connect(), connect()
    free.set()
    first.exchange()

    assert first.job.result(10) is True
    second.exchange()
    second.client.close()
    assert second.job.result(10) is False


@pytest.mark.usefixtures("no_limit")
def test_request_that_has_been_read_ahead_returns_to_the_main_thread(
    worker: Worker, connect: Connect
) -> None:
    connection = connect()
    connection.client.sendall(REQUEST + REQUEST)

    assert connection.job.result(10) is True
    assert worker.nr == 1


@pytest.mark.usefixtures("no_limit")
def test_connection_returns_to_the_main_thread_of_a_worker_that_stops(
    worker: Worker, connect: Connect
) -> None:
    def stop(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        worker.alive = False
        return application(environ, start_response)

    worker.wsgi = stop
    connection = connect()
    connection.exchange()

    assert connection.job.result(10) is True
