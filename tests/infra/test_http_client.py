"""HttpClient: returns one complete response from the requested host, or fails."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import urllib3

from app.infra import http_client, http_deadline
from app.infra.http_client import HttpClient, TransportError
from tests.conftest import cannot_run
from tests.helpers import servers
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Unavailable, make_certificate
from tests.helpers.upstream import Reply, Upstream, running_upstream


@pytest.fixture
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HttpClient]:
    ca_bundle = None
    if "tls" in request.fixturenames:
        request.getfixturevalue("tls")
        ca_bundle = str(tmp_path / "certificate.pem")
    found = HttpClient(ca_bundle)
    yield found
    found.close()


@contextmanager
def running_tls_upstream(home: Path, name: str) -> Iterator[tuple[HttpClient, Upstream]]:
    """Run an upstream with a certificate for this name, and a client that trusts it."""
    try:
        make_certificate(servers.find_program("openssl", "openssl"), home, name)
    except Unavailable as error:
        cannot_run(error)
    found = HttpClient(str(home / "certificate.pem"))
    with running_upstream(certificate=home) as running:
        yield found, running
    found.close()


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Upstream]:
    """An upstream over TLS that `client` trusts."""
    with running_tls_upstream(tmp_path, "IP:127.0.0.1") as (_, running):
        yield running


def call(client: HttpClient, sandbox: SandboxClient, **request: Any) -> http_client.HttpResponse:
    return client.send("POST", f"{sandbox.accounts_url}/api/token", data={"grant_type": "x"}, **request)


@pytest.mark.parametrize("kind", ["redirect_302", "redirect_307"])
def test_redirects_are_not_followed(client: HttpClient, sandbox: SandboxClient, kind: str) -> None:
    sandbox.fault(on="token", kind=kind, location=f"{sandbox.url}/_sandbox/people")

    response = call(client, sandbox)

    assert response.status in (302, 307)
    assert len(sandbox.calls()) == 1


@pytest.mark.parametrize("kind", ["huge_body", "gzip_bomb", "close", "cut_body"])
def test_incomplete_or_oversized_response_is_an_error(
    client: HttpClient, sandbox: SandboxClient, kind: str
) -> None:
    sandbox.fault(on="token", kind=kind)

    with pytest.raises(TransportError):
        call(client, sandbox)


@pytest.mark.parametrize("kind", ["timeout", "drip"])
def test_slow_response_ends_at_the_deadline(
    client: HttpClient, sandbox: SandboxClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_deadline, "FIRST_BYTE_SECONDS", 60.0)
    monkeypatch.setattr(http_client, "TOTAL_SECONDS", 0.5)
    sandbox.fault(on="token", kind=kind, seconds=60)
    began = time.monotonic()

    with pytest.raises(TransportError):
        call(client, sandbox)

    assert time.monotonic() - began < 30
    sandbox.clear_faults()
    monkeypatch.undo()
    assert call(client, sandbox).status == 400  # the next call has its own deadline


def test_refused_connection_is_an_error(client: HttpClient) -> None:
    with pytest.raises(TransportError):
        client.send("GET", "http://127.0.0.1:1/")


def test_environment_and_netrc_are_ignored(
    client: HttpClient, sandbox: SandboxClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login x password y\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    response = client.send("GET", f"{sandbox.api_url}/me", headers={"Authorization": "Bearer not-a-token"})

    # With credentials from the file, this would be 400, and with the proxy, there would be no response.
    assert response.status == 401


def test_cookies_are_neither_stored_nor_sent(client: HttpClient, sandbox: SandboxClient) -> None:
    for _ in range(2):
        call(client, sandbox)

    assert all("cookie" not in {name.lower() for name in received["headers"]} for received in sandbox.calls())


def test_connection_is_reused_after_one_handshake(client: HttpClient, tls: Upstream) -> None:
    for number in range(50):
        response = client.send("POST", f"{tls.url}/{number}", data=b"x" * number)
        assert response.json_object() == {"call": number + 1}

    assert (len(tls.calls), tls.handshakes) == (50, 1)


def test_threads_share_connections_without_mixing_responses(client: HttpClient, tls: Upstream) -> None:
    tls.reply = lambda received: Reply(200, received.body + received.target.encode())
    start = threading.Barrier(8)

    def call_repeatedly(thread: int) -> list[bytes]:
        start.wait()
        numbers = range(thread, 400, 8)
        return [client.send("POST", f"{tls.url}/{number}", data=b"%d" % number).body for number in numbers]

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(call_repeatedly, range(8)))

    for thread, got in enumerate(responses):
        assert got == [b"%d/v1/%d" % (number, number) for number in range(thread, 400, 8)]
    assert len(tls.calls) == 400
    assert 1 <= tls.handshakes <= 8


def test_untrusted_certificate_is_rejected_before_sending(tls: Upstream) -> None:
    client = HttpClient()
    with pytest.raises(TransportError) as failed:
        client.send("POST", f"{tls.url}/x", headers={"Authorization": "Bearer x"})
    client.close()

    assert not failed.value.not_sent  # a TLS error may also occur while the response is read
    assert (tls.calls, tls.handshakes) == ([], 0)


def test_certificate_of_another_host_is_rejected(tmp_path: Path) -> None:
    with (
        running_tls_upstream(tmp_path, "DNS:api.spotify.com") as (client, running),
        pytest.raises(TransportError),
    ):
        client.send("GET", f"{running.url}/x")

    assert running.calls == []


def test_certificates_and_proxies_of_the_environment_are_ignored(
    tls: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "certificate.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, tls.url)
    client = HttpClient()

    with pytest.raises(TransportError) as failed:
        client.send("GET", f"{tls.url}/x")
    client.close()

    assert isinstance(failed.value.__cause__, urllib3.exceptions.SSLError)
    assert not isinstance(failed.value.__cause__, urllib3.exceptions.ProxyError)


def test_response_can_have_exactly_the_maximum_size(client: HttpClient, tls: Upstream) -> None:
    limit = 8 * 1024 * 1024
    tls.replies(Reply(200, b"x" * limit), Reply(200, b"x" * (limit + 1)), Reply())

    assert len(client.send("GET", f"{tls.url}/x", max_bytes=limit).body) == limit
    with pytest.raises(TransportError) as failed:
        client.send("GET", f"{tls.url}/x", max_bytes=limit)
    assert not failed.value.not_sent
    # The rest of it must not become the next response.
    assert client.send("GET", f"{tls.url}/x").body == b"{}"


def test_interim_responses_are_skipped(client: HttpClient) -> None:
    """The response that follows 103 Early Hints (RFC 8297) must not go to the next caller."""
    pause = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with connection:
                while request := connection.recv(65_536):
                    name = request.split(b" ")[1]
                    connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
                    pause.wait(0.05)  # so that the client reads this on its own
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name)
                    connection.sendall(head + name)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for name in ("ada", "bob"):
            response = client.send("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/{name}")
            assert (response.status, response.body) == (200, f"/{name}".encode())
        client.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


RESPONDED = "Sun, 06 Nov 1994 08:49:37 GMT"


RETRY_AFTER: dict[str, int | None] = {
    "7": 7,
    "0": 0,
    "86400": 86_400,
    "120 ": 120,
    "\t120": 120,
    "1.5": 2,
    "0.01": 1,
    "2.": 2,
    "30.0": 30,
    # The three spellings of RFC 9110 section 5.6.7.
    "Sun, 06 Nov 1994 08:50:07 GMT": 30,
    "Sunday, 06-Nov-94 08:50:07 GMT": 30,
    "Sun Nov  6 08:50:07 1994": 30,
    "Sun, 06 Nov 1994 08:49:37 GMT": 0,
    "Sat, 05 Nov 1994 08:49:37 GMT": 0,
    "": None,
    "-1": None,
    "-1.5": None,
    ".5": None,
    "soon": None,
    "1e3": None,
    "0x10": None,
    "nan": None,
    "inf": None,
    "1,5": None,
    "7, 7": None,
    "٣": None,
    "Sun, 32 Nov 1994 08:49:37 GMT": None,
    "Sun, 06 Nov 99999 08:49:37 GMT": None,
    "9" * 30: None,
}


def test_retry_after_can_be_seconds_or_a_date() -> None:
    found = {header: http_client.retry_after(header, since=RESPONDED) for header in RETRY_AFTER}
    assert found == RETRY_AFTER


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_retry_after_date_falls_back_to_our_clock(date: dict[str, str]) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert http_client.HttpResponse(429, {"retry-after": until, **date}, b"").retry_after in range(30, 61)


def test_body_that_is_not_an_object_counts_as_empty() -> None:
    for body in (b"", b"[]", b"null", b"<html>", b"\xff", b'{"a":', b"[" * 100_000):
        assert http_client.HttpResponse(200, {}, body).json_object() == {}, body[:9]
