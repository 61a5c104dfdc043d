"""Sends requests through nginx at a steady pace, and remembers how each of them ended.

Every client has many addresses, because nginx limits each address.
"""

import http.client
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

HOST = "api.example.com"
ADDRESSES_PER_CLIENT = 16
TIMEOUT_SECONDS = 60.0  # longer than nginx waits, so a request fails only if nginx or the app says so


class Call(NamedTuple):
    """A request, and the status of its response if all is well."""

    method: str
    target: str
    status: int
    headers: Mapping[str, str] = {}
    body: bytes | None = None


class Ended(NamedTuple):
    """How a request ended: with a response or, if `status` is 0, with an error."""

    call: Call
    began: float
    ended: float
    status: int
    body: bytes

    @property
    def has_failed(self) -> bool:
        return self.status != self.call.status

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Connection(http.client.HTTPConnection):
    """A connection to nginx from a given address of the loopback network."""

    def __init__(self, port: int, context: ssl.SSLContext, source: str) -> None:
        super().__init__(HOST, port, timeout=TIMEOUT_SECONDS)
        self._context, self._source = context, source

    def connect(self) -> None:
        plain = socket.create_connection(
            ("127.0.0.1", self.port), timeout=TIMEOUT_SECONDS, source_address=(self._source, 0)
        )
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._context.wrap_socket(plain, server_hostname=HOST)

    def send_call(self, call: Call) -> Ended:
        """Send a request, on a new connection if the last one was closed."""
        began = time.monotonic()
        try:
            headers = {"Host": HOST, "X-Requested-With": "load", **call.headers}
            self.request(call.method, call.target, call.body, headers)
            response = self.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            status, body = 0, repr(error).encode()
        return Ended(call, began, time.monotonic(), status, body)


class Load:
    """Clients that send these requests in turn, each waiting for its response, until they are stopped."""

    def __init__(
        self,
        port: int,
        certificate: Path,
        calls: Sequence[Call],
        *,
        clients: int = 8,
        addresses: int = ADDRESSES_PER_CLIENT,
    ) -> None:
        self.ended: list[Ended] = []
        self._context = ssl.create_default_context(cafile=str(certificate))
        self._port, self._calls, self._addresses = port, calls, addresses
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=[n]) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Ended]:
        return [each for each in self.ended if each.has_failed]

    def wait_for(self, count: int) -> None:
        """Wait until this many more requests have ended."""
        goal = len(self.ended) + count
        while len(self.ended) < goal:
            time.sleep(0.01)

    def _send(self, number: int) -> None:
        connections = [
            Connection(self._port, self._context, f"127.0.{number + 1}.{address + 1}")
            for address in range(self._addresses)
        ]
        for connection, call in zip(itertools.cycle(connections), itertools.cycle(self._calls), strict=False):
            if self._stopping.is_set():
                break
            self.ended.append(connection.send_call(call))
        for connection in connections:
            connection.close()


def percentile(durations: Iterable[float], percent: float) -> float:
    """Return the duration that this share of requests did not exceed."""
    ordered = sorted(durations)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def summary(ended: Sequence[Ended]) -> dict[str, Any]:
    """Return the number of requests and failures, and latencies in milliseconds."""
    seconds = [each.seconds for each in ended]
    return {
        "requests": len(ended),
        "failed": sum(each.has_failed for each in ended),
        "p50_ms": round(1000 * percentile(seconds, 50), 1),
        "p99_ms": round(1000 * percentile(seconds, 99), 1),
        "max_ms": round(1000 * max(seconds), 1),
    }


@contextmanager
def slow_connections(port: int, certificate: Path, sent: Sequence[bytes]) -> Iterator[list[ssl.SSLSocket]]:
    """Open a connection for each of these incomplete requests, and keep it open."""
    context = ssl.create_default_context(cafile=str(certificate))
    opened: list[ssl.SSLSocket] = []
    try:
        for data in sent:
            plain = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=("127.0.0.2", 0))
            opened.append(context.wrap_socket(plain, server_hostname=HOST))
            opened[-1].sendall(data)
        yield opened
    finally:
        for each in opened:
            each.close()
