"""The refresh token in a truncated or wrongly encoded response is stored."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from app.infra.http_client import HttpClient
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.application import Application
from app.spotify.clients.errors import SpotifyError, SpotifyTransportError
from config import Config
from tests.conftest import SETTINGS

WHOLE = json.dumps({"access_token": "BQ-x", "refresh_token": "AQ-new", "pad": "x" * 30_000}).encode()
GZIP = gzip.compress(WHOLE)
APPLICATION = Application("id", "secret")
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture
def replying() -> Iterator[Callable[[bytes], SpotifyAccounts]]:
    """Start accounts services that send these bytes as their only response, and close the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        http_client = HttpClient()
        threads = []

        def reply(raw: bytes) -> SpotifyAccounts:
            def serve() -> None:
                connection, _ = listener.accept()
                with connection, suppress(ConnectionError):  # the client may close it first
                    connection.recv(65_536)
                    connection.sendall(raw)

            threads.append(threading.Thread(target=serve, daemon=True))
            threads[-1].start()
            config = Config.from_env({**SETTINGS, "SPOTIFY_ACCOUNTS_URL": url})
            return SpotifyAccounts(config, http_client)

        yield reply
        http_client.close()
        for thread in threads:
            thread.join(60)


def http(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"", body])


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


@pytest.mark.parametrize(
    "raw",
    [
        http(WHOLE[:-1], length(WHOLE)),
        http(WHOLE[:60], length(WHOLE)),
        http(b"%x\r\n%b" % (len(WHOLE), WHOLE[:-9]), CHUNKED),
        http(b"40\r\n%b\r\nno number\r\n" % WHOLE[:64], CHUNKED),
        http(GZIP[:-9], length(GZIP), b"Content-Encoding: gzip"),
        http(WHOLE, length(WHOLE), b"Content-Encoding: gzip"),
        http(WHOLE[:-2] + b"x" * 1_100_000),
    ],
    ids=["length", "early", "chunk", "chunk-size", "gzip", "no-gzip", "too-big"],
)
def test_refresh_token_survives_a_truncated_response(
    replying: Callable[[bytes], SpotifyAccounts], raw: bytes
) -> None:
    with pytest.raises(SpotifyError) as failure:
        replying(raw).refresh(APPLICATION, "AQ-old")

    assert (str(failure.value), failure.value.refresh_token) == ("transport_error", "AQ-new")
    assert isinstance(failure.value, SpotifyTransportError)
    assert not failure.value.not_sent


def test_truncated_refresh_token_is_not_used(
    replying: Callable[[bytes], SpotifyAccounts],
) -> None:
    cut = WHOLE[: WHOLE.index(b"AQ-new") + 4]
    with pytest.raises(SpotifyError) as failure:
        replying(http(cut, length(WHOLE))).refresh(APPLICATION, "AQ-old")

    assert failure.value.refresh_token is None
