"""The outbound client: one whole answer from the host that was asked, or none."""

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import outbound
from app.outbound import NoAnswer, Outbound
from tests.sandbox_client import SandboxClient
from tests.services import free_port


@pytest.fixture
def client() -> Iterator[Outbound]:
    found = Outbound()
    yield found
    found.close()


def ask(client: Outbound, sandbox: SandboxClient, **request: Any) -> outbound.Answer:
    return client.send("POST", f"{sandbox.accounts_url}/api/token", data={"grant_type": "x"}, **request)


@pytest.mark.parametrize("kind", ["redirect_302", "redirect_307"])
def test_a_redirect_is_not_followed(client: Outbound, sandbox: SandboxClient, kind: str) -> None:
    sandbox.fault(on="token", kind=kind, location=f"{sandbox.url}/_sandbox/people")

    answer = ask(client, sandbox)

    assert answer.status in (302, 307)
    assert len(sandbox.calls()) == 1


@pytest.mark.parametrize("kind", ["huge_body", "gzip_bomb", "close", "cut_body"])
def test_an_answer_that_is_not_whole_or_too_big_is_none(
    client: Outbound, sandbox: SandboxClient, kind: str
) -> None:
    sandbox.fault(on="token", kind=kind)

    with pytest.raises(NoAnswer):
        ask(client, sandbox)


@pytest.mark.parametrize("kind", ["timeout", "drip"])
def test_a_slow_answer_ends_at_the_deadline(
    client: Outbound, sandbox: SandboxClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 1.0)
    sandbox.fault(on="token", kind=kind)
    began = time.monotonic()

    with pytest.raises(NoAnswer):
        ask(client, sandbox)

    assert time.monotonic() - began < outbound.FIRST_BYTE_SECONDS
    sandbox.clear_faults()
    assert ask(client, sandbox).status == 400  # the next call has a deadline of its own


def test_nobody_there_is_no_answer(client: Outbound) -> None:
    with pytest.raises(NoAnswer):
        client.send("GET", f"http://127.0.0.1:{free_port()}/")


def test_nothing_of_the_environment_is_sent_or_used(
    client: Outbound, sandbox: SandboxClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login x password y\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    answer = client.send("GET", f"{sandbox.api_url}/me", headers={"Authorization": "Bearer not-a-token"})

    # Basic credentials from the file would have been a 400; a proxy, no answer.
    assert answer.status == 401


def test_cookies_are_neither_kept_nor_sent(client: Outbound, sandbox: SandboxClient) -> None:
    for _ in range(2):
        ask(client, sandbox)

    assert all("cookie" not in {name.lower() for name in call["headers"]} for call in sandbox.calls())


def test_a_connection_is_used_again(client: Outbound) -> None:
    ports: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(5):
            assert client.send("GET", f"http://127.0.0.1:{server.server_port}/").json_object() == {}
        server.shutdown()
        client.close()

    assert len(ports) == 5
    assert len(set(ports)) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("86400", 86_400),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("1.5", None),
        ("9" * 30, None),
    ],
)
def test_retry_after_is_read_in_seconds(header: str, seconds: int | None) -> None:
    assert outbound.Answer(429, {"retry-after": header}, b"").retry_after == seconds


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"<html>", b"\xff", b'{"a":', b"[" * 100_000])
def test_a_body_that_is_no_object_counts_as_empty(body: bytes) -> None:
    assert outbound.Answer(200, {}, body).json_object() == {}
