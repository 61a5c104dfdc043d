"""HttpClient: the deadline applies to every step, and idle connections are not reused."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from app.infra import http_client, http_deadline, sockets
from app.infra.http_client import HttpClient, TransportError
from app.mail import transport
from config import Config
from tests.conftest import SETTINGS
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import eventually
from tests.helpers.upstream import Upstream

pytestmark = pytest.mark.slow

TIMEOUT = 0.5
TOO_LATE = 30.0  # much longer than TIMEOUT on a busy machine, and shorter than any step without a deadline
NEVER = 60.0


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpClient]:
    """A client whose calls have no limit but their deadline."""
    for name in ("CONNECT_SECONDS", "FIRST_BYTE_SECONDS"):
        monkeypatch.setattr(http_deadline, name, NEVER)
    monkeypatch.setattr(http_client, "TOTAL_SECONDS", NEVER)
    found = HttpClient()
    yield found
    found.close()


def fail(client: HttpClient, url: str, **request: Any) -> TransportError:
    """Make a call that gets no response, and check that it ends in time."""
    began = time.monotonic()
    with pytest.raises(TransportError) as failed:
        client.send("POST", url, timeout=TIMEOUT, **request)
    assert time.monotonic() - began < TOO_LATE
    return failed.value


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list[tuple[str, int]]]], None]:
    """Replace the system's resolver by one that returns these addresses for every name."""

    def replace(addresses: Callable[[], list[tuple[str, int]]]) -> None:
        def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses()]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return replace


def test_slow_name_lookup_ends_at_the_deadline(
    client: HttpClient, resolve: Callable[..., None], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "RETRY_SECONDS", 60.0)
    port, found, lookups = int(upstream.url.split(":")[2].split("/")[0]), threading.Event(), []

    def wait() -> list[tuple[str, int]]:
        lookups.append(1)
        found.wait(NEVER)
        return [("127.0.0.1", port)]

    resolve(wait)
    url = f"http://api.spotify.invalid:{port}/v1/x"
    with ThreadPoolExecutor(8) as pool:
        assert all(error.not_sent for error in pool.map(lambda _: fail(client, url), range(8)))
    assert len(lookups) == 1  # callers share it, so it blocks one thread
    threading.Timer(0.1, found.set).start()
    assert client.send("POST", url).status == 200  # joins the same lookup
    assert len(lookups) == 1


def test_lost_lookup_does_not_delay_other_callers(
    client: HttpClient, resolve: Callable[..., None], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "RETRY_SECONDS", 0.1)
    port, found, lookups = int(upstream.url.split(":")[2].split("/")[0]), threading.Event(), []

    def fail_first_lookup() -> list[tuple[str, int]]:
        lookups.append(1)
        if len(lookups) == 1:
            found.wait(NEVER)
        return [("127.0.0.1", port)]

    resolve(fail_first_lookup)
    assert client.send("POST", f"http://lost.spotify.invalid:{port}/v1/x").status == 200
    found.set()


def test_dead_resolver_blocks_only_a_few_threads(
    client: HttpClient, resolve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "RETRY_SECONDS", 0.01)
    found, lookups = threading.Event(), []

    def fail_late() -> list[tuple[str, int]]:
        lookups.append(1)
        found.wait(NEVER)
        raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")

    resolve(fail_late)
    while len(lookups) < sockets.MAX_THREADS:
        fail(client, "http://dead.spotify.invalid/v1/x")
    fail(client, "http://dead.spotify.invalid/v1/x")
    assert len(lookups) == sockets.MAX_THREADS
    found.set()
    fail(client, "http://dead.spotify.invalid/v1/x")


@contextmanager
def silent_listener() -> Iterator[tuple[str, int]]:
    """An address that does not accept connections, because its backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_many_silent_addresses_share_the_deadline(client: HttpClient, resolve: Callable[..., None]) -> None:
    with silent_listener() as silent:
        resolve(lambda: [silent] * 100)
        assert fail(client, "http://api.spotify.invalid/").not_sent


def test_address_after_a_silent_one_is_reached(
    client: HttpClient, resolve: Callable[..., None], upstream: Upstream
) -> None:
    port = int(upstream.url.split(":")[2].split("/")[0])
    with silent_listener() as silent:
        resolve(lambda: [silent, ("127.0.0.1", port)])
        url = f"http://api.spotify.invalid:{port}/v1/x"
        eventually(lambda: client.send("POST", url, timeout=0.5).status == 200, NEVER)


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run `handle` for each connection, in a thread. Yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                stack.callback(connection.close)
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def drip(connection: socket.socket) -> None:
    """Begin a TLS record, and send it byte by byte."""
    try:
        connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc\x03\x03")
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)
    except OSError:
        pass


@pytest.mark.parametrize("handle", [lambda _: None, drip], ids=["silent", "dripping"])
def test_slow_tls_handshake_ends_at_the_deadline(
    client: HttpClient, handle: Callable[[socket.socket], None]
) -> None:
    with serving(handle) as port:
        assert fail(client, f"https://127.0.0.1:{port}/").not_sent


def test_request_without_a_response_is_discarded(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would otherwise arrive when the network is back. A reset shows that nothing is sent any more."""
    resets: list[bool] = []

    def read(connection: socket.socket) -> None:
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            resets.append(True)
        else:
            resets.append(False)

    monkeypatch.setattr(http_deadline, "FIRST_BYTE_SECONDS", TIMEOUT)
    with serving(read) as port:
        with pytest.raises(TransportError):
            client.send("POST", f"http://127.0.0.1:{port}/api/token", data={"refresh_token": "r"})
        eventually(lambda: resets)
    assert resets == [True]


def test_write_is_not_sent_on_an_idle_connection(
    client: HttpClient, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_deadline, "IDLE_SECONDS", NEVER)
    port = int(upstream.url.split(":")[2].split("/")[0])
    with FaultProxy(("127.0.0.1", port)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/v1/me/player/next"
        for _ in range(2):
            assert client.send("POST", url).status == 200
        assert upstream.handshakes == 1
        monkeypatch.setattr(http_deadline, "IDLE_SECONDS", 0.0)
        proxy.lose_connections()

        assert client.send("POST", url).status == 200
    assert upstream.handshakes == 2


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_slow_name_lookup_of_the_mail_server_ends_in_time(
    resolve: Callable[..., None], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(transport, "CONNECT_SECONDS", TIMEOUT)
    never = threading.Event()
    resolve(lambda: [("127.0.0.1", 1)] * never.wait(NEVER))
    config = Config.from_env({**SETTINGS, "MAIL_URL": f"{scheme}://mail-{scheme}.invalid"})
    began = time.monotonic()
    with pytest.raises(TimeoutError), transport.SmtpTransport(config).connect():
        pass
    assert time.monotonic() - began < TOO_LATE
    never.set()
