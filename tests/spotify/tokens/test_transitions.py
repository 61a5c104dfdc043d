"""The effect of each response of Spotify's token endpoint on the caller, the grant, and other connections.

The rule is in `TABLE`, a row for each answer: only a 400 with `invalid_grant` says anything about the
person's grant; a refusal of the client is about us; a 429 is about everybody; all else is the weather.
"""

import gzip
import json
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra import http_client, http_deadline
from app.infra.database import reading, writing
from app.models import AccessToken, Breaker, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.services import services
from app.spotify.tokens.breaker_rules import Reason
from app.spotify.tokens.encryption import decrypt_token
from tests.helpers.factories import advance_time
from tests.helpers.flows import another_tab, connect, refresh_count, send_callback, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually, free_port

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)

# --- what a response means ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """The effect of a response without a token. The grant always keeps its refresh token."""

    problem: tuple[int, str]
    """The status and slug of GET /api/spotify/token."""
    retry_after: tuple[int, int] | None
    """The range of its Retry-After, or None if it has none."""
    outcome: Outcome
    """The outcome of the attempt in the history."""
    pause: tuple[timedelta, timedelta] | None
    """The range of the grant's backoff, or None if the failure is not the grant's own."""
    state: GrantState = GrantState.ACTIVE
    status: str = "connected"
    """The status in GET /api/spotify."""
    reason: Reason | None = None
    """The breaker that opens, and for how long."""
    hold: timedelta | None = None


REFUSED = Meaning(
    problem=(409, "spotify-reauthorization-required"),
    retry_after=None,
    outcome=Outcome.INVALID_GRANT,
    pause=(15 * MINUTE, 15 * MINUTE),
    state=GrantState.SUSPECT,
    status="suspect",
)
OUR_FAULT = Meaning(
    problem=(503, "spotify-misconfigured"),
    retry_after=(1, 300),
    outcome=Outcome.MISCONFIGURED,
    pause=None,
    reason=Reason.MISCONFIGURED,
    hold=55 * SECOND,
)
UNAVAILABLE = Meaning(
    problem=(503, "spotify-unavailable"),
    retry_after=(1, 1),
    outcome=Outcome.UNAVAILABLE,
    pause=(SECOND / 2, SECOND),
)


def wait(seconds: int, *, told: tuple[int, int] | None = None) -> Meaning:
    """Everybody waits this long: a 429 is about the application as a whole."""
    return Meaning(
        problem=(503, "spotify-unavailable"),
        retry_after=told or (seconds, seconds),
        outcome=Outcome.RATE_LIMITED,
        pause=None,
        reason=Reason.RATE_LIMITED,
        hold=seconds * SECOND,
    )


# Without a Retry-After, the wait is half a minute.
WAIT_AS_WE_LIKE = wait(30, told=(1, 30))

# --- who responds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spotify:
    """The token endpoint that a test uses."""

    url: str
    heard: Callable[[], int]
    """The number of calls that reached it."""


# Makes the token endpoint respond in a certain way, for as long as the stack lasts.
Play = Callable[[ExitStack, SandboxClient], Spotify]
Deed = Callable[["Host", socket.socket], None]


def fault(kind: str, **members: Any) -> Play:
    """A fault of the sandbox, on the next refresh."""

    def play(_stack: ExitStack, sandbox: SandboxClient) -> Spotify:
        sandbox.fault(on="refresh", kind=kind, **members)
        return Spotify(sandbox.accounts_url, lambda: refresh_count(sandbox))

    return play


def within(play: Play, **seconds: float) -> Play:
    """The same, with deadlines that are short enough for a test."""

    def shortened(stack: ExitStack, sandbox: SandboxClient) -> Spotify:
        for name, value in seconds.items():
            module = http_client if name == "TOTAL_SECONDS" else http_deadline
            stack.enter_context(patch.object(module, name, value))
        return play(stack, sandbox)

    return shortened


class Host(ThreadingHTTPServer):
    """A host on loopback that responds to every call in the same way, and keeps what it received."""

    daemon_threads = True

    def __init__(self, deed: Deed, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.deed = deed
        self.forms: list[dict[str, list[str]]] = []
        self.sent = 0
        """The number of bytes that `pour` has sent."""
        self.over = threading.Event()
        self.scheme = "http" if context is None else "https"
        if context is not None:
            # The handshake runs in the call's thread, so that a failure ends only that thread.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def spotify(self) -> Spotify:
        return Spotify(f"{self.scheme}://127.0.0.1:{self.server_port}", lambda: len(self.forms))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that the other end hung up, which most of these tests provoke."""


class _Call(BaseHTTPRequestHandler):
    server: Host

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.forms.append(parse_qs(body.decode()))
        with suppress(OSError):
            self.server.deed(self.server, self.connection)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running(host: Host) -> Iterator[Host]:
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        host.over.set()
        host.shutdown()
        host.server_close()
        thread.join()


def does(deed: Deed) -> Play:
    def play(stack: ExitStack, _sandbox: SandboxClient) -> Spotify:
        host = stack.enter_context(running(Host(deed)))
        return host.spotify

    return play


def sends(raw: bytes) -> Play:
    """Send exactly these bytes, and close the connection."""
    return does(lambda _host, connection: connection.sendall(raw))


def answers(status: int, body: object = b"", **headers: str) -> Play:
    """Respond with this status and body, as JSON unless it is bytes. `Retry_After="7"` sets a header."""
    return sends(message(status, body, **headers))


def message(status: int, body: object = b"", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + content


def cut(status: int, body: object) -> Play:
    """Respond with this status and complete body, but with a greater Content-Length."""
    return sends(message(status, json.dumps(body).encode() + b" ")[:-1])


def padded(body: object) -> bytes:
    """Respond with JSON, followed by more spaces than we read."""
    return json.dumps(body).encode() + b" " * MIB


def oauth(error: object, **members: object) -> dict[str, object]:
    return {"error": error, **members}


def pour(host: Host, connection: socket.socket, head: bytes, blocks: int) -> None:
    """Send this many MiB after the head, or as much as the client reads."""
    connection.sendall(head)
    for _ in range(blocks):
        connection.sendall(b"a" * MIB)
        host.sent += MIB


def drip_head(host: Host, connection: socket.socket) -> None:
    """Send an endless header, with each byte soon enough to avoid a read timeout."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not host.over.wait(0.05):
        connection.sendall(b"a")


def reset(_host: Host, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


def nobody_there(_stack: ExitStack, _sandbox: SandboxClient) -> Spotify:
    return Spotify(f"http://127.0.0.1:{free_port()}", lambda: 0)


def nobody_accepts(stack: ExitStack, _sandbox: SandboxClient) -> Spotify:
    """Return a port whose queue is full, so that connecting never succeeds."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return Spotify(f"http://127.0.0.1:{listener.getsockname()[1]}", lambda: 0)


def no_such_name(stack: ExitStack, _sandbox: SandboxClient) -> Spotify:
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "accounts.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **kwargs)

    stack.enter_context(patch.object(socket, "getaddrinfo", look_up))
    return Spotify("https://accounts.invalid", lambda: 0)


def nobodys_certificate(stack: ExitStack, _sandbox: SandboxClient) -> Spotify:
    """Use TLS with a self-signed certificate for the right address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stack.enter_context(self_signed()))
    good = message(200, {**TOKEN, "token_type": "Bearer"})
    host = stack.enter_context(running(Host(lambda _, connection: connection.sendall(good), context)))
    return host.spotify


@contextmanager
def self_signed() -> Iterator[Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "host.pem"
        pem = serialization.Encoding.PEM
        file.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(pem)
        )
        yield file


# --- the rule ----------------------------------------------------------------------------------------

ACCESS_TOKEN, REFRESH_TOKEN = "BQ-" + "given" * 14, "AQ-" + "given" * 14
TOKEN: dict[str, object] = {"access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 3600}
FAR = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Row:
    name: str
    spotify: Play
    means: Meaning
    heard: int = 1
    """The number of calls that reach it, at most one."""

    @property
    def parameter(self) -> Any:
        return pytest.param(self, id=self.name.replace(" ", "-"))


TABLE = [
    # Only a 400 with `invalid_grant`, however worded, is about the grant.
    Row("refresh token revoked", fault("refresh_token_revoked"), REFUSED),
    Row("refresh token expired", fault("refresh_token_expired"), REFUSED),
    Row("invalid refresh token", fault("invalid_refresh_token"), REFUSED),
    Row("invalid_grant without a description", fault("invalid_grant_bare"), REFUSED),
    Row("invalid_grant in the words for codes", fault("invalid_code"), REFUSED),
    Row(
        "invalid_grant in words never seen",
        answers(400, oauth("invalid_grant", error_description="Jeton révoqué : invalid_client")),
        REFUSED,
    ),
    Row(
        "invalid_grant in no words at all",
        answers(400, oauth("invalid_grant", error_description={}), Content_Type="text/html"),
        REFUSED,
    ),
    # With another status, or if it only looks similar, it is not.
    Row("invalid_grant as a 200", answers(200, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant as a 401", answers(401, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant as a 403", answers(403, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant as a 500", answers(500, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant as a 503", answers(503, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant in a list", answers(400, oauth(["invalid_grant"])), UNAVAILABLE),
    Row("invalid_grant as the Web API would say it", fault("bearer_only"), UNAVAILABLE),
    Row(
        "invalid_grant in the message only",
        answers(400, oauth({"status": 400, "message": "invalid_grant"})),
        UNAVAILABLE,
    ),
    Row("invalid_grant cut off", answers(400, b'{"error":"invalid_grant"'), UNAVAILABLE),
    Row("invalid_grant of more bytes than come", cut(400, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant as text", answers(400, b"invalid_grant"), UNAVAILABLE),
    Row("invalid_grant in another case", answers(400, oauth("INVALID_GRANT")), UNAVAILABLE),
    # The client is rejected, which is not about the grant.
    Row("invalid client", fault("invalid_client"), OUR_FAULT),
    Row("invalid client secret", fault("invalid_client_secret"), OUR_FAULT),
    Row("invalid_client without a description", fault("invalid_client_bare"), OUR_FAULT),
    Row(
        "invalid_client as a 401",
        answers(401, oauth("invalid_client"), WWW_Authenticate='Basic realm="spotify"'),
        OUR_FAULT,
    ),
    Row(
        "invalid_client that mentions invalid_grant",
        answers(400, oauth("invalid_client", error_description="invalid_grant")),
        OUR_FAULT,
    ),
    Row("unauthorized client", fault("unauthorized_client"), OUR_FAULT),
    Row("grant type missing", fault("grant_type_missing"), OUR_FAULT),
    Row("grant type unsupported", fault("unsupported_grant_type"), OUR_FAULT),
    Row("invalid scope", answers(400, oauth("invalid_scope")), OUR_FAULT),
    # Unknown refusals have no effect on the grant.
    Row("refresh token must be supplied", fault("refresh_token_missing"), UNAVAILABLE),
    Row("code must be supplied", fault("code_missing"), UNAVAILABLE),
    Row("an error unheard of", answers(400, oauth("slow_down")), UNAVAILABLE),
    Row("server_error as a 400", answers(400, oauth("server_error")), UNAVAILABLE),
    Row("a 400 in HTML", answers(400, b"<html>Bad request</html>", Content_Type="text/html"), UNAVAILABLE),
    Row("a 400 without a body", answers(400), UNAVAILABLE),
    Row("a 401 without a body", answers(401), UNAVAILABLE),
    Row("invalid_client as a 403", answers(403, oauth("invalid_client")), UNAVAILABLE),
    Row("a 403 in words", fault("not_registered_2026"), UNAVAILABLE),
    Row("a 404", fault("not_found"), UNAVAILABLE),
    Row("a 408", answers(408), UNAVAILABLE),
    # A Retry-After applies to the whole application, up to a day.
    Row("429 for 120 s", fault("rate_limited", retry_after=120), wait(120)),
    Row("429 for a day", fault("rate_limited", retry_after=86_400, body="quota"), wait(86_400)),
    Row("429 for more than a day", fault("rate_limited", retry_after=100_000), wait(86_400)),
    Row("429 for 0 s", fault("rate_limited", retry_after=0, body="text"), wait(1)),
    Row("429 without Retry-After", fault("rate_limited", body="empty"), WAIT_AS_WE_LIKE),
    Row("429 for soon", answers(429, Retry_After="soon"), WAIT_AS_WE_LIKE),
    Row("429 for -1 s", answers(429, Retry_After="-1"), WAIT_AS_WE_LIKE),
    Row("429 for 1.5 s", answers(429, Retry_After="1.5"), wait(2)),
    Row("429 until a date", answers(429, Retry_After="Wed, 21 Oct 2037 07:28:00 GMT"), wait(86_400)),
    Row("429 for longer than the universe", answers(429, Retry_After="9" * 40), WAIT_AS_WE_LIKE),
    Row("429 that says invalid_grant", answers(429, oauth("invalid_grant"), Retry_After="7"), wait(7)),
    # Outages, as observed.
    Row("502 in Google's HTML", fault("google_502"), UNAVAILABLE),
    Row("502 in JSON", fault("json_502"), UNAVAILABLE),
    Row("503 of Envoy", fault("envoy_503"), UNAVAILABLE),
    Row("503 without a body", fault("empty_503"), UNAVAILABLE),
    Row("503 in HTML", fault("html_503"), UNAVAILABLE),
    Row(
        "503 with Retry-After",
        answers(503, Retry_After="120"),
        replace(UNAVAILABLE, retry_after=(120, 120), pause=(120 * SECOND, 120 * SECOND)),
    ),
    Row("500 in JSON", fault("json_500"), UNAVAILABLE),
    Row("500 server_error", fault("server_error"), UNAVAILABLE),
    Row("504 without a body", fault("empty_504"), UNAVAILABLE),
    # The status and the body disagree about whether there is a token.
    Row("200 without a body", fault("empty_200"), UNAVAILABLE),
    Row("200 with half a body", fault("truncated_json"), UNAVAILABLE),
    Row("200 without access_token", fault("no_access_token"), UNAVAILABLE),
    Row("200 with wrong types", fault("wrong_types"), UNAVAILABLE),
    Row("200 with a list", fault("json_list"), UNAVAILABLE),
    Row("200 of a hotel", fault("html_200"), UNAVAILABLE),
    Row("200 with an empty token", answers(200, {**TOKEN, "access_token": ""}), UNAVAILABLE),
    Row("200 with a token of two lines", answers(200, {**TOKEN, "access_token": "a\r\nb"}), UNAVAILABLE),
    Row("200 with a token too long", answers(200, {**TOKEN, "access_token": "a" * 8193}), UNAVAILABLE),
    Row("201 with a token", answers(201, TOKEN), UNAVAILABLE),
    Row("204", fault("no_content"), UNAVAILABLE),
    # Redirects, which are not followed.
    Row("302", fault("redirect_302"), UNAVAILABLE),
    Row("307", fault("redirect_307"), UNAVAILABLE),
    Row("308 with a token", answers(308, TOKEN, Location=f"{FAR}/api/token"), UNAVAILABLE),
    Row("302 to nowhere", answers(302), UNAVAILABLE),
    Row(
        "302 to no address",
        answers(302, Location="http://["),
        UNAVAILABLE,
    ),
    Row(
        "302 to no text",
        answers(302, Location="/\xff"),
        UNAVAILABLE,
    ),
    # No response, or an incomplete one.
    Row("closed without a word", fault("close"), UNAVAILABLE),
    Row("closed in mid-body", fault("cut_body"), UNAVAILABLE),
    Row("a token of more bytes than come", cut(200, TOKEN), UNAVAILABLE),
    Row("closed in mid-header", sends(b"HTTP/1.1 200 OK\r\nContent-Le"), UNAVAILABLE),
    Row("reset", does(reset), UNAVAILABLE),
    Row("not HTTP", sends(b"220 mail.example.com ESMTP\r\n"), UNAVAILABLE),
    Row("a header too long", sends(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n{}"), UNAVAILABLE),
    Row(
        "chunks that are none", sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx"), UNAVAILABLE
    ),
    Row(
        "chunks of a negative size",
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n"),
        UNAVAILABLE,
    ),
    Row("gzip that is none", answers(200, b"abc", Content_Encoding="gzip"), UNAVAILABLE),
    Row("a body above 1 MiB", fault("huge_body"), UNAVAILABLE),
    Row("a gzip bomb", fault("gzip_bomb"), UNAVAILABLE),
    Row("a token in a body above 1 MiB", answers(200, padded(TOKEN)), UNAVAILABLE),
    Row(
        "a token in a gzip bomb",
        answers(200, gzip.compress(padded(TOKEN)), Content_Encoding="gzip"),
        UNAVAILABLE,
    ),
    Row("no first byte", within(fault("timeout"), FIRST_BYTE_SECONDS=0.3), UNAVAILABLE),
    Row("a body that drips", within(fault("drip"), TOTAL_SECONDS=0.5), UNAVAILABLE),
    Row("a header that drips", within(does(drip_head), TOTAL_SECONDS=0.5), UNAVAILABLE),
    Row("nobody there", nobody_there, UNAVAILABLE, heard=0),
    Row("nobody accepts", within(nobody_accepts, CONNECT_SECONDS=0.3), UNAVAILABLE, heard=0),
    Row("no such name", no_such_name, UNAVAILABLE, heard=0),
    Row("a certificate of nobody's", nobodys_certificate, UNAVAILABLE, heard=0),
]


# --- people and their grants -------------------------------------------------------------------------

# For tests that do not depend on the database.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def connected(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    connect(client, sandbox)
    return client


def ask(client: FlaskClient) -> TestResponse:
    return client.get("/api/spotify/token")


def grants(app: Flask) -> list[AccessToken]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(AccessToken).order_by(AccessToken.id)))


def grant(app: Flask) -> AccessToken:
    [only] = grants(app)
    return only


def columns(row: AccessToken, *, without: tuple[str, ...] = ()) -> dict[str, object]:
    names = {column.name for column in AccessToken.__table__.columns}.difference(without)
    return {name: getattr(row, name) for name in names}


def attempts(app: Flask) -> list[TokenRefresh]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(TokenRefresh).order_by(TokenRefresh.id)))


def answered_at(app: Flask) -> datetime:
    """Return when the last outcome was recorded."""
    finished_at = attempts(app)[-1].finished_at
    assert finished_at is not None
    return finished_at


def open_breakers(app: Flask) -> list[Breaker]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(Breaker).where(Breaker.closed_at.is_(None))))


def kept(app: Flask, column: str = "refresh_token") -> str:
    with app.app_context():
        return decrypt_token(services().token_cipher, grant(app), column)


def run_out(app: Flask, *, left: float = -60, **values: object) -> None:
    """Let all access tokens, with the usual lifetime of an hour, expire in this many seconds."""
    end = datetime.now(UTC) + left * SECOND
    with app.app_context(), writing() as db:
        times = {"expires_at": end, "refreshed_at": end - timedelta(hours=1)}
        db.execute(sa.update(AccessToken).values({**times, **values}))


@contextmanager
def asking(app: Flask, spotify: Spotify) -> Iterator[None]:
    """Point the app to an accounts service at this URL."""
    accounts = app.extensions["backline"].accounts
    there = accounts._config.model_copy(update={"spotify_accounts_url": spotify.url})
    with patch.object(accounts, "_config", there):
        yield


# With the deadlines of the table, none takes a second; without them, at least the 10 s of a call.
MAX_SECONDS = 8

# --- the table ---------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("row", [row.parameter for row in TABLE])
def test_response_of_token_endpoint(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, row: Row
) -> None:
    means = row.means
    run_out(app)
    before, refresh_token = grant(app), kept(app)
    with ExitStack() as stack:
        spotify = row.spotify(stack, sandbox)
        stack.enter_context(asking(app, spotify))
        began = time.monotonic()

        response = ask(connected)

        assert time.monotonic() - began < MAX_SECONDS
        assert spotify.heard() == row.heard
    assert (response.status_code, slug(response)) == means.problem
    check_retry_after(response, means)
    [attempt] = attempts(app)
    assert (attempt.outcome, attempt.effective, attempt.generation) == (means.outcome, None, 0)
    check_breakers(open_breakers(app), means)
    check_grant(grant(app), before, attempt, means)
    assert kept(app) == refresh_token
    assert connected.get("/api/spotify").json["status"] == means.status

    check_recovery(connected, app, sandbox, means)


def check_retry_after(response: TestResponse, means: Meaning) -> None:
    told = response.headers.get("Retry-After")
    if means.retry_after is None:
        assert told is None
    else:
        least, most = means.retry_after
        assert told is not None
        assert least <= int(told) <= most


def check_breakers(opened: list[Breaker], means: Meaning) -> None:
    assert [breaker.name for breaker in opened] == ([means.reason] if means.reason else [])
    assert [breaker.probe_at - breaker.opened_at for breaker in opened] == ([means.hold] if opened else [])


def check_grant(after: AccessToken, before: AccessToken, attempt: TokenRefresh, means: Meaning) -> None:
    assert (after.attempt_id, after.lease_until) == (None, None)
    assert after.state == means.state
    assert attempt.finished_at is not None
    assert after.due_at is not None
    if means.pause is None:
        # The failure does not seem to be the grant's own: it waits for the breaker, and comes last.
        assert (after.not_before, after.failures) == (None, 1)
    else:
        assert after.not_before == after.due_at
        assert means.pause[0] <= after.due_at - attempt.finished_at <= means.pause[1]
        assert after.failures == 1
    written = ("attempt_id", "lease_until", "state", "failures", "not_before", "due_at", "updated_at")
    assert columns(after, without=written) == columns(before, without=written)


def check_recovery(client: FlaskClient, app: Flask, sandbox: SandboxClient, means: Meaning) -> None:
    """After the fault and the wait are over, everything works as before."""
    sandbox.clear_faults()
    waits = means.hold or (means.pause or (SECOND,))[-1]
    advance_time(app, sandbox, waits.total_seconds() + 1)

    response = ask(client)

    assert response.status_code == 200, response.text
    assert client.get("/api/spotify").json["status"] == "connected"
    after = grant(app)
    assert (after.state, after.generation, after.failures) == (GrantState.ACTIVE, 1, 0)
    assert (after.not_before, after.attempt_id, after.lease_until) == (None, None, None)
    assert [attempt.outcome for attempt in attempts(app)] == [means.outcome, Outcome.REFRESHED]
    assert open_breakers(app) == []


def test_table_has_each_response_once() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 30


ONE_OF_EACH = [
    row.parameter
    for row in TABLE
    if row.name
    in (
        "refresh token revoked",
        "invalid client",
        "429 for 120 s",
        "429 without Retry-After",
        "502 in Google's HTML",
        "200 with wrong types",
        "closed without a word",
        "a certificate of nobody's",
        "nobody there",
    )
]


@on_sqlite
@pytest.mark.parametrize("row", ONE_OF_EACH)
def test_valid_token_is_returned_whatever_spotify_responds(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, row: Row
) -> None:
    given = ask(connected).json["access_token"]
    run_out(app, left=9)
    with ExitStack() as stack:
        stack.enter_context(asking(app, row.spotify(stack, sandbox)))
        before = ask(connected)
        eventually(lambda: [attempt.outcome for attempt in attempts(app)][:1] == [row.means.outcome])
        eventually(lambda: bool(open_breakers(app)) == (row.means.reason is not None))

        after = ask(connected)

    for response in (before, after):
        assert response.status_code == 200, response.text
        assert response.json["access_token"] == given
        assert 0 < response.json["expires_in"] < 10
    assert grant(app).state == row.means.state


# --- responses with a token ------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A usable response: how it differs from `TOKEN`, and its effect."""

    name: str
    changed: dict[str, object]
    life: int = 3600
    """In seconds."""
    refresh_token: str | None = None
    """The refresh token that is stored, or None for the one that was presented."""
    scope: str | None = None
    """The stored scope, or None if it does not change."""
    type: str = "application/json"


GIVEN = [
    Given("without a refresh token", {}),
    Given("with refresh_token null", {"refresh_token": None}),
    Given("with another refresh token", {"refresh_token": REFRESH_TOKEN}, refresh_token=REFRESH_TOKEN),
    Given("with the same scopes", {"scope": "user-top-read streaming"}, scope="user-top-read streaming"),
    Given("with fewer scopes", {"scope": "streaming"}, scope="streaming"),
    Given("with scope null", {"scope": None}),
    Given(
        "with all at once",
        {"refresh_token": REFRESH_TOKEN, "scope": "streaming", "expires_in": 1800},
        life=1800,
        refresh_token=REFRESH_TOKEN,
        scope="streaming",
    ),
    Given("for a fraction of a second more", {"expires_in": 3600.9}),
    Given("for 3600.0 s", {"expires_in": 3600.0}),
    Given("for 60 s", {"expires_in": 60}, life=60),
    Given("for a year, of which a day is believed", {"expires_in": 31_536_000}, life=86_400),
    Given("for 10**300 s, of which a day is believed", {"expires_in": 10**300}, life=86_400),
    Given("for 1e300 s, of which a day is believed", {"expires_in": 1e300}, life=86_400),
    Given("with token_type in lower case", {"token_type": "bearer"}),
    Given("with members unheard of", {"id_token": 5, "refresh_token_expires_in": 15_552_000}),
    Given("with an empty refresh token", {"refresh_token": ""}),
    Given("with a refresh token that is a number", {"refresh_token": 5}),
    Given("with a scope in a list", {"scope": ["streaming"]}),
    Given("with an empty scope", {"scope": " "}),
    Given("with another type of token", {"token_type": "mac"}),
    Given(
        "with token_type null",
        {"token_type": None, "refresh_token": REFRESH_TOKEN},
        refresh_token=REFRESH_TOKEN,
    ),
    Given(
        "for '1800' s",
        {"expires_in": "1800", "refresh_token": REFRESH_TOKEN},
        life=1800,
        refresh_token=REFRESH_TOKEN,
    ),
    Given("for '1800.5' s", {"expires_in": " 1800.5 "}, life=1800),
    Given("for 0 s", {"expires_in": 0}),
    Given("for -3600 s", {"expires_in": -3600, "refresh_token": REFRESH_TOKEN}, refresh_token=REFRESH_TOKEN),
    Given("for infinity", {"expires_in": float("inf")}),
    Given("for NaN", {"expires_in": float("nan")}),
    Given("for true", {"expires_in": True}),
    Given(
        "for an unknown time",
        {"expires_in": None, "refresh_token": REFRESH_TOKEN},
        refresh_token=REFRESH_TOKEN,
    ),
    Given("as text", {}, type="text/plain"),
]


@on_sqlite
@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.name.replace(" ", "-"))
def test_usable_response_is_accepted(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, given: Given
) -> None:
    # Two earlier failures, which must leave no trace.
    run_out(app, failures=2)
    before, presented = grant(app), kept(app)
    good = message(200, {**TOKEN, **given.changed}, Content_Type=given.type)
    with (
        running(Host(lambda _, connection: connection.sendall(good))) as host,
        asking(app, host.spotify),
    ):
        response = ask(connected)
        after, [attempt] = grant(app), attempts(app)
        run_out(app)
        assert ask(connected).status_code == 200

    refresh_token = given.refresh_token or presented
    assert response.status_code == 200, response.text
    assert response.json["access_token"] == ACCESS_TOKEN
    assert given.life - 5 < response.json["expires_in"] <= given.life
    assert (after.state, after.generation, after.failures) == (GrantState.ACTIVE, 1, 0)
    assert (after.not_before, after.attempt_id, after.lease_until) == (None, None, None)
    assert after.expires_at - attempt.started_at == given.life * SECOND
    assert after.refreshed_at == attempt.started_at
    assert after.due_at is not None
    assert attempt.started_at < after.due_at < after.expires_at
    assert after.authorized_at == before.authorized_at
    assert after.scope == (before.scope if given.scope is None else given.scope) == response.json["scope"]
    assert (attempt.outcome, attempt.effective, attempt.generation) == (Outcome.REFRESHED, 1, 0)
    assert open_breakers(app) == []
    assert kept(app) == refresh_token
    assert kept(app, "access_token") == ACCESS_TOKEN
    assert [form["refresh_token"] for form in host.forms] == [[presented], [refresh_token]]
    assert connected.get("/api/spotify").json["status"] == "connected"


# --- other hosts -------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_sends_nothing_to_another_host(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, status: int
) -> None:
    run_out(app)
    with ExitStack() as stack:
        elsewhere = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        elsewhere.setblocking(False)
        location = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/api/token"
        spotify = answers(status, Location=location)(stack, sandbox)
        stack.enter_context(asking(app, spotify))

        response = ask(connected)

        assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
        assert spotify.heard() == 1
        with pytest.raises(BlockingIOError):  # there was no connection
            elsewhere.accept()


@on_sqlite
@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK",
        "HTTP/1.1 400 Bad Request",
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: /api/token",
    ],
    ids=["200", "400", "307"],
)
def test_huge_body_is_not_read_to_its_end(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, head: str
) -> None:
    run_out(app)
    start = f"{head}\r\nContent-Length: {64 * MIB}\r\n\r\n".encode()
    with (
        running(Host(lambda host, connection: pour(host, connection, start, 64))) as host,
        asking(app, host.spotify),
    ):
        response = ask(connected)

    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
    assert host.sent < 32 * MIB  # the kernel buffers more than the 1 MiB that is read


# --- refusals, and the grant's age ---------------------------------------------------------


def test_revoked_grant_ends_in_steps_until_new_consent(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    run_out(app)
    refresh_token = kept(app)
    sandbox.revoke("mira_t_42")
    for step, pause in enumerate((15 * MINUTE, DAY), 1):
        assert ask(connected).status_code == 409
        suspect = grant(app)
        assert (suspect.state, suspect.failures, suspect.ended_at) == (GrantState.SUSPECT, step, None)
        assert suspect.not_before == suspect.due_at == answered_at(app) + pause
        assert connected.get("/api/spotify").json["status"] == "suspect"
        # Until just before then, there are no calls to Spotify.
        advance_time(app, sandbox, pause.total_seconds() - 30)
        assert ask(connected).status_code == 409
        assert refresh_count(sandbox) == step
        advance_time(app, sandbox, 31)

    over = ask(connected)

    assert (over.status_code, slug(over)) == (409, "spotify-reauthorization-required")
    ended = grant(app)
    assert ended.state == GrantState.REAUTHORIZATION_REQUIRED
    assert (ended.due_at, ended.not_before) == (None, None)
    assert ended.ended_at == answered_at(app)
    assert kept(app) == refresh_token  # for another week
    assert [attempt.outcome for attempt in attempts(app)] == [Outcome.INVALID_GRANT] * 3
    assert connected.get("/api/spotify").json["status"] == "reauthorization_required"
    advance_time(app, sandbox, 7200)
    assert ask(connected).status_code == 409
    assert refresh_count(sandbox) == 3

    offers = [connected.get("/api/spotify/authorize").json for _ in range(2)]
    assert {(offer["status"], offer["reason"]) for offer in offers} == {
        ("authorization_required", "reauthorization_required")
    }
    assert len({offer["authorize_url"] for offer in offers}) == 2
    back = send_callback(connected, sandbox.consent(offers[1]["authorize_url"], person="mira_t_42"))
    assert back.json["status"] == "connected", back.text
    assert ask(connected).status_code == 200
    renewed = grant(app)
    assert (renewed.state, renewed.failures, renewed.ended_at) == (GrantState.ACTIVE, 0, None)


@pytest.mark.parametrize("mistakes", [1, 2])
def test_false_refusal_leaves_no_trace(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, mistakes: int
) -> None:
    run_out(app)
    before = grant(app)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=mistakes)
    for pause in (15 * MINUTE, DAY)[:mistakes]:
        assert ask(connected).status_code == 409
        advance_time(app, sandbox, pause.total_seconds() + 1)

    assert ask(connected).status_code == 200

    refreshed = ("access_token", "refresh_token", "generation")
    moments = ("expires_at", "authorized_at", "due_at", "refreshed_at", "created_at", "updated_at")
    assert columns(grant(app), without=refreshed + moments) == columns(before, without=refreshed + moments)
    assert connected.get("/api/spotify").json["status"] == "connected"
    # The next refusal counts as the first one.
    run_out(app)
    sandbox.fault(on="refresh", kind="false_invalid_grant")
    assert ask(connected).status_code == 409
    suspect = grant(app)
    assert (suspect.state, suspect.failures) == (GrantState.SUSPECT, 1)
    assert suspect.not_before == answered_at(app) + 15 * MINUTE


@pytest.mark.parametrize(
    ("days", "state", "outcome"),
    [
        (179, GrantState.SUSPECT, Outcome.INVALID_GRANT),
        (180, GrantState.REAUTHORIZATION_REQUIRED, Outcome.AGED),
        (181, GrantState.REAUTHORIZATION_REQUIRED, Outcome.AGED),
    ],
)
def test_refusal_of_aged_grant_ends_it_immediately(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, days: int, state: GrantState, outcome: Outcome
) -> None:
    run_out(app, authorized_at=datetime.now(UTC) - days * DAY - MINUTE)
    sandbox.fault(on="refresh", kind="refresh_token_expired")

    response = ask(connected)

    assert (response.status_code, slug(response)) == (409, "spotify-reauthorization-required")
    assert grant(app).state == state
    assert [attempt.outcome for attempt in attempts(app)] == [outcome]
    over = state == GrantState.REAUTHORIZATION_REQUIRED
    assert (grant(app).due_at is None, grant(app).ended_at is not None) == (over, over)


def test_aged_grant_that_spotify_accepts_stays_active(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    run_out(app, authorized_at=datetime.now(UTC) - 190 * DAY)

    assert ask(connected).status_code == 200
    assert grant(app).state == GrantState.ACTIVE


# --- misconfiguration and rate limits affect everybody ----------------------------------------------------


@pytest.fixture
def three(new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient) -> list[FlaskClient]:
    """Return the clients of three people whose access tokens have expired."""
    people = [new_client() for _ in range(3)]
    for client, person in zip(people, ("mira_t_42", "jonas.k", "aiko-87"), strict=True):
        connect(client, sandbox, person=person)
    run_out(app)
    return people


@pytest.mark.parametrize("kind", ["invalid_client", "invalid_client_secret", "unauthorized_client"])
def test_misconfiguration_is_detected_by_one_call_and_marks_no_grant(
    three: list[FlaskClient], app: Flask, sandbox: SandboxClient, kind: str
) -> None:
    before = grants(app)
    sandbox.fault(on="refresh", kind=kind, times=None)

    responses = [ask(client) for client in three]

    assert [(response.status_code, slug(response)) for response in responses] == [
        (503, "spotify-misconfigured")
    ] * 3
    assert all(0 < int(response.headers["Retry-After"]) <= 60 for response in responses[1:])
    assert refresh_count(sandbox) == 1
    assert [attempt.outcome for attempt in attempts(app)] == [Outcome.MISCONFIGURED]
    after = grants(app)
    assert [columns(row) for row in after[1:]] == [columns(row) for row in before[1:]]
    timing = ("due_at", "failures", "updated_at")  # it can be tried as soon as any other, but last
    assert columns(after[0], without=timing) == columns(before[0], without=timing)
    assert [client.get("/api/spotify").json["status"] for client in three] == ["connected"] * 3

    sandbox.clear_faults()
    advance_time(app, sandbox, 50)
    assert [ask(client).status_code for client in three] == [503] * 3
    assert refresh_count(sandbox) == 1
    advance_time(app, sandbox, 11)
    assert [ask(client).status_code for client in three] == [200] * 3
    assert refresh_count(sandbox) == 4
    assert open_breakers(app) == []


def test_retry_after_applies_to_other_people_too(
    three: list[FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    sandbox.fault(on="refresh", kind="rate_limited", retry_after=120)
    first, other, third = three
    assert ask(first).headers["Retry-After"] == "120"
    untouched = columns(grants(app)[1])

    for left in (120, 60, 5):
        response = ask(other)
        assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
        assert 0 < int(response.headers["Retry-After"]) <= left
        advance_time(app, sandbox, {120: 60, 60: 55, 5: 6}[left])
    assert refresh_count(sandbox) == 1
    assert len(attempts(app)) == 1
    times = {"expires_at", "authorized_at", "due_at", "refreshed_at", "created_at", "updated_at"}
    now = columns(grants(app)[1])
    assert {name for name in now if now[name] != untouched[name]} <= times

    assert [ask(client).status_code for client in (other, third, first)] == [200] * 3
    assert refresh_count(sandbox) == 4
    assert open_breakers(app) == []


def test_success_of_earlier_attempt_does_not_end_retry_after(
    three: list[FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    first, second, third = three
    sandbox.fault(on="refresh", kind="park")
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, another_tab(first))
        sandbox.wait_for_held(1)
        sandbox.fault(on="refresh", kind="rate_limited", retry_after=3600)
        assert ask(second).headers["Retry-After"] == "3600"
        sandbox.release()
        assert early.result().status_code == 200

    assert ask(third).status_code == 503
    assert refresh_count(sandbox) == 2
