"""The fault proxy: each fault works as documented and can be removed."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import LONG, eventually


class Echo(socketserver.BaseRequestHandler):
    """Sends every chunk back, and counts the bytes that it has read."""

    def handle(self) -> None:
        while chunk := self.request.recv(65_536):
            self.server.heard += chunk  # type: ignore[attr-defined]
            self.request.sendall(chunk)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    heard = b""


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", echo.server_address[1])) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with connected(proxy) as client:
        yield client


def connected(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG)


def exchange(client: socket.socket, text: bytes) -> bytes:
    """Send bytes and receive as many, or fewer if the connection ends."""
    client.sendall(text)
    return receive(client, len(text))


def receive(client: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length and (chunk := client.recv(65_536)):
        received += chunk
    return received


def receives_nothing(client: socket.socket, seconds: float = 0.1) -> bool:
    """Check that nothing arrives for a while and the connection stays open."""
    client.settimeout(seconds)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(LONG)
    return False


def test_proxy_forwards_bytes_unchanged(proxy: FaultProxy, client: socket.socket) -> None:
    long = bytes(range(256)) * 2000

    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, client, len(long))
        client.sendall(long)

        assert received.result() == long
    assert proxy.connections == 1


def test_closed_connection_is_removed(proxy: FaultProxy, client: socket.socket) -> None:
    exchange(client, b"hello")
    client.close()

    eventually(lambda: proxy.connections == 0)


def test_refused_port_stays_refused_until_restored(proxy: FaultProxy, client: socket.socket) -> None:
    exchange(client, b"hello")

    proxy.refuse()

    assert client.recv(1) == b""
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
    proxy.restore()
    with connected(proxy) as again:
        assert exchange(again, b"hello") == b"hello"


def test_black_hole_accepts_connections_and_never_responds(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer
) -> None:
    exchange(client, b"before ")

    proxy.blackhole()

    client.sendall(b"lost")
    with connected(proxy) as another:
        another.sendall(b"lost")
        assert receives_nothing(another)
        assert receives_nothing(client)
        # A connection that has lost bytes is closed.
        proxy.restore()
        assert (another.recv(1), client.recv(1)) == (b"", b"")
    with connected(proxy) as again:
        assert exchange(again, b"after") == b"after"
    assert echo.heard == b"before after"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_held_chunk_waits_for_release(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer, direction: Any
) -> None:
    proxy.hold(direction, when=b"COMMIT")
    assert exchange(client, b"begin ") == b"begin "

    client.sendall(b"\x07\0\0\0\x03COMMIT")
    proxy.wait_until_held()

    assert receives_nothing(client)
    assert (b"COMMIT" in echo.heard) == (direction == "down")
    with connected(proxy) as another:
        assert exchange(another, b"others go on") == b"others go on"
    proxy.release()
    assert receive(client, 11) == b"\x07\0\0\0\x03COMMIT"
    assert proxy.held == 0
    assert exchange(client, b"COMMIT") == b"COMMIT"


def test_pattern_is_found_across_two_chunks(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.hold("up", when=b"COMMIT")

    assert exchange(client, b"...COM") == b"...COM"
    client.sendall(b"MIT...")

    proxy.wait_until_held()


def test_pattern_that_passed_before_the_fault_does_not_count(
    proxy: FaultProxy, client: socket.socket
) -> None:
    exchange(client, b"COMMIT")
    proxy.hold("up", when=b"COMMIT")

    assert exchange(client, b"...") == b"..."
    assert proxy.held == 0


def test_pattern_can_be_required_to_follow_another(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.hold("up", when=b"COMMIT", since=b"UPDATE")

    assert exchange(client, b"SELECT; COMMIT") == b"SELECT; COMMIT"
    assert exchange(client, b"UPDATE") == b"UPDATE"
    with connected(proxy) as another:
        assert exchange(another, b"COMMIT") == b"COMMIT"
    client.sendall(b"COMMIT")

    proxy.wait_until_held()


def test_bytes_held_for_a_client_that_disconnects_never_arrive(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer
) -> None:
    exchange(client, b"begin ")
    proxy.hold("up", when=b"COMMIT")
    client.sendall(b"COMMIT")
    proxy.wait_until_held()
    client.sendall(b" and more")

    client.close()

    eventually(lambda: proxy.connections == 0)
    proxy.release()
    assert echo.heard == b"begin "


def test_waiting_for_a_hold_times_out(proxy: FaultProxy) -> None:
    proxy.hold("up", when=b"COMMIT")

    with pytest.raises(AssertionError, match="1 held connections"):
        proxy.wait_until_held(timeout=0.05)


def test_dropped_reply_is_lost_after_its_effect(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer
) -> None:
    proxy.drop_reply(after=b"COMMIT")
    assert exchange(client, b"begin ") == b"begin "

    assert exchange(client, b"COMMIT") == b""

    assert echo.heard == b"begin COMMIT"
    assert proxy.dropped == 1
    with connected(proxy) as again:  # once only
        assert exchange(again, b"COMMIT") == b"COMMIT"


def test_client_can_reconnect_after_a_cut(proxy: FaultProxy, client: socket.socket) -> None:
    exchange(client, b"hello")

    proxy.cut()

    assert client.recv(1) == b""
    with connected(proxy) as again:
        assert exchange(again, b"hello") == b"hello"


def test_latency_delays_until_it_is_removed(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.latency(0.05)
    began = time.monotonic()
    exchange(client, b"hello")
    assert time.monotonic() - began >= 0.1

    proxy.latency(60)
    client.sendall(b"hello")
    assert receives_nothing(client)
    proxy.restore()
    assert receive(client, 5) == b"hello"


def test_missing_upstream_closes_the_connection(proxy: FaultProxy, echo: EchoServer) -> None:
    echo.server_close()

    with connected(proxy) as client:
        assert client.recv(1) == b""
