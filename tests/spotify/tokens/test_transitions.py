"""The effect of each response of Spotify's token endpoint on the caller, the grant, and other connections.

`TABLE` has a row for each response. Only a 400 with `invalid_grant` concerns the grant. An error about the
client concerns our configuration, and a 429 the whole application. Anything else is an outage.
"""

import gzip
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import pytest
import sqlalchemy as sa
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
from tests.helpers.rate_limits import seconds_left
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually, free_port

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)

# --- effects ---


@dataclass(frozen=True)
class Effect:
    """The effect of a response without a token. The grant always keeps its refresh token."""

    problem: tuple[int, str]
    """The status and slug of GET /api/spotify/token."""
    retry_after: tuple[int, int] | None
    """The range of its Retry-After, or None if it has none."""
    outcome: Outcome
    """The outcome of the attempt in the history."""
    backoff: tuple[timedelta, timedelta] | None
    """The range of the grant's backoff, or None if the failure does not concern the grant."""
    state: GrantState = GrantState.ACTIVE
    status: str = "connected"
    """The status in GET /api/spotify."""
    reason: Reason | None = None
    """The breaker that opens, or None."""
    open_for: timedelta | None = None
    """How long until its first probe."""


REJECTED = Effect(
    problem=(409, "spotify-reauthorization-required"),
    retry_after=None,
    outcome=Outcome.INVALID_GRANT,
    backoff=(15 * MINUTE, 15 * MINUTE),
    state=GrantState.SUSPECT,
    status="suspect",
)
MISCONFIGURED = Effect(
    problem=(503, "spotify-misconfigured"),
    retry_after=(1, 300),
    outcome=Outcome.MISCONFIGURED,
    backoff=None,
    reason=Reason.MISCONFIGURED,
    open_for=55 * SECOND,
)
UNAVAILABLE = Effect(
    problem=(503, "spotify-unavailable"),
    retry_after=(1, 1),
    outcome=Outcome.UNAVAILABLE,
    backoff=(SECOND / 2, SECOND),
)


def wait(seconds: int, *, retry_after: tuple[int, int] | None = None) -> Effect:
    """Return the effect of a 429: all grants wait this long."""
    return Effect(
        problem=(503, "spotify-unavailable"),
        retry_after=retry_after or (max(1, seconds - 60), seconds),  # some of them may have passed
        outcome=Outcome.RATE_LIMITED,
        backoff=None,
        reason=Reason.RATE_LIMITED,
        open_for=seconds * SECOND,
    )


# Without a valid Retry-After.
DEFAULT_WAIT = wait(30, retry_after=(1, 30))

# --- token endpoints ---


@dataclass(frozen=True)
class TokenEndpoint:
    """The token endpoint that a test uses."""

    url: str
    call_count: Callable[[], int]
    """The number of calls that reached it."""


# Starts an endpoint that runs until the stack is closed.
StartEndpoint = Callable[[ExitStack, SandboxClient], TokenEndpoint]
Respond = Callable[["FakeServer", socket.socket], None]


def fault(kind: str, **members: Any) -> StartEndpoint:
    """Return the sandbox, with a fault on the next refresh."""

    def start(_stack: ExitStack, sandbox: SandboxClient) -> TokenEndpoint:
        sandbox.fault(on="refresh", kind=kind, **members)
        return TokenEndpoint(sandbox.accounts_url, lambda: refresh_count(sandbox))

    return start


def with_deadlines(start: StartEndpoint, **seconds: float) -> StartEndpoint:
    """Shorten deadlines, given by the names of their constants."""

    def start_with_deadlines(stack: ExitStack, sandbox: SandboxClient) -> TokenEndpoint:
        for name, value in seconds.items():
            module = http_client if name == "TOTAL_SECONDS" else http_deadline
            stack.enter_context(patch.object(module, name, value))
        return start(stack, sandbox)

    return start_with_deadlines


class FakeServer(ThreadingHTTPServer):
    """A server that responds to every call in the same way, and records the forms that it received."""

    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.respond = respond
        self.forms: list[dict[str, list[str]]] = []
        self.sent = 0
        """The number of bytes that `send_large_body` has sent."""
        self.stopping = threading.Event()

    @property
    def endpoint(self) -> TokenEndpoint:
        return TokenEndpoint(f"http://127.0.0.1:{self.server_port}", lambda: len(self.forms))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, as most of these tests provoke."""


class _Call(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.forms.append(parse_qs(body.decode()))
        with suppress(OSError):
            self.server.respond(self.server, self.connection)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


def responds_by(respond: Respond) -> StartEndpoint:
    def start(stack: ExitStack, _sandbox: SandboxClient) -> TokenEndpoint:
        server = stack.enter_context(running(FakeServer(respond)))
        return server.endpoint

    return start


def sends_raw(raw: bytes) -> StartEndpoint:
    """Send exactly these bytes, and close the connection."""
    return responds_by(lambda _host, connection: connection.sendall(raw))


def responds(status: int, body: object = b"", **headers: str) -> StartEndpoint:
    """Respond with this status and body, as JSON unless it is bytes. `Retry_After="7"` sets a header."""
    return sends_raw(http_response(status, body, **headers))


def http_response(status: int, body: object = b"", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + content


def truncated(status: int, body: object) -> StartEndpoint:
    """Respond with this status and complete body, but with a greater Content-Length."""
    return sends_raw(http_response(status, json.dumps(body).encode() + b" ")[:-1])


def padded(body: object) -> bytes:
    """Return JSON followed by more spaces than the client reads."""
    return json.dumps(body).encode() + b" " * MIB


def oauth(error: object, **members: object) -> dict[str, object]:
    return {"error": error, **members}


def send_large_body(server: FakeServer, connection: socket.socket, head: bytes, blocks: int) -> None:
    """Send this many MiB after the head, or as much as the client reads."""
    connection.sendall(head)
    for _ in range(blocks):
        connection.sendall(b"a" * MIB)
        server.sent += MIB


def send_endless_header(server: FakeServer, connection: socket.socket) -> None:
    """Send an endless header, one byte at a time, fast enough to avoid a read timeout."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not server.stopping.wait(0.05):
        connection.sendall(b"a")


def reset_connection(_host: FakeServer, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


def closed_port(_stack: ExitStack, _sandbox: SandboxClient) -> TokenEndpoint:
    return TokenEndpoint(f"http://127.0.0.1:{free_port()}", lambda: 0)


def full_backlog(stack: ExitStack, _sandbox: SandboxClient) -> TokenEndpoint:
    """Listen with a full backlog, so that connecting never succeeds."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return TokenEndpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", lambda: 0)


def unknown_host(stack: ExitStack, _sandbox: SandboxClient) -> TokenEndpoint:
    real = socket.getaddrinfo

    def look_up(server: Any, *args: Any, **kwargs: Any) -> Any:
        if server == "accounts.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(server, *args, **kwargs)

    stack.enter_context(patch.object(socket, "getaddrinfo", look_up))
    return TokenEndpoint("https://accounts.invalid", lambda: 0)


# --- the table of responses ---

ACCESS_TOKEN, REFRESH_TOKEN = "BQ-" + "token" * 14, "AQ-" + "token" * 14
TOKEN: dict[str, object] = {"access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 3600}


@dataclass(frozen=True)
class Row:
    name: str
    start: StartEndpoint
    effect: Effect
    call_counts: tuple[int, ...] = (1,)
    """How many calls may reach it. On a busy machine, a short deadline may pass before the call is sent."""

    @property
    def parameter(self) -> Any:
        return pytest.param(self, id=self.name.replace(" ", "-"))


TABLE = [
    # Only a 400 with `invalid_grant`, however worded, is about the grant.
    Row("refresh token revoked", fault("refresh_token_revoked"), REJECTED),
    Row("refresh token expired", fault("refresh_token_expired"), REJECTED),
    Row(
        "invalid_grant with an unknown description",
        responds(400, oauth("invalid_grant", error_description="Jeton révoqué : invalid_client")),
        REJECTED,
    ),
    # With another status or in another format, it does not concern the grant.
    Row("invalid_grant as a 200", responds(200, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant as a 500", responds(500, oauth("invalid_grant")), UNAVAILABLE),
    Row("invalid_grant with a truncated body", truncated(400, oauth("invalid_grant")), UNAVAILABLE),
    # Errors about the client.
    Row("invalid client", fault("invalid_client"), MISCONFIGURED),
    Row(
        "invalid_client as a 401",
        responds(401, oauth("invalid_client"), WWW_Authenticate='Basic realm="spotify"'),
        MISCONFIGURED,
    ),
    Row("invalid scope", responds(400, oauth("invalid_scope")), MISCONFIGURED),
    # Unknown errors have no effect on the grant.
    Row("refresh token must be supplied", fault("refresh_token_missing"), UNAVAILABLE),
    Row("an unknown error", responds(400, oauth("slow_down")), UNAVAILABLE),
    Row("a 400 without a body", responds(400), UNAVAILABLE),
    Row("a 403 in text", fault("not_registered_2026"), UNAVAILABLE),
    # A Retry-After applies to the whole application, up to a day.
    Row("429 for a day", fault("rate_limited", retry_after=86_400, body="quota"), wait(86_400)),
    Row("429 for more than a day", fault("rate_limited", retry_after=100_000), wait(86_400)),
    Row("429 for 0 s", fault("rate_limited", retry_after=0, body="text"), wait(1)),
    Row("429 without Retry-After", fault("rate_limited", body="empty"), DEFAULT_WAIT),
    Row("429 for soon", responds(429, Retry_After="soon"), DEFAULT_WAIT),
    Row("429 that says invalid_grant", responds(429, oauth("invalid_grant"), Retry_After="7"), wait(7)),
    # Outages, as observed.
    Row("502 in Google's HTML", fault("google_502"), UNAVAILABLE),
    Row("503 of Envoy", fault("envoy_503"), UNAVAILABLE),
    Row(
        "503 with Retry-After",
        responds(503, Retry_After="120"),
        replace(UNAVAILABLE, retry_after=(120, 120), backoff=(120 * SECOND, 120 * SECOND)),
    ),
    Row("500 in JSON", fault("json_500"), UNAVAILABLE),
    # The status and the body disagree about whether there is a token.
    Row("200 without a body", fault("empty_200"), UNAVAILABLE),
    Row("200 with half a body", fault("truncated_json"), UNAVAILABLE),
    Row("200 without access_token", fault("no_access_token"), UNAVAILABLE),
    Row("200 with wrong types", fault("wrong_types"), UNAVAILABLE),
    Row(
        "200 with a line break in the token", responds(200, {**TOKEN, "access_token": "a\r\nb"}), UNAVAILABLE
    ),
    Row("201 with a token", responds(201, TOKEN), UNAVAILABLE),
    Row("204", fault("no_content"), UNAVAILABLE),
    # Redirects, which are not followed.
    Row("302", fault("redirect_302"), UNAVAILABLE),
    Row(
        "302 to an invalid URL",
        responds(302, Location="http://["),
        UNAVAILABLE,
    ),
    # No response, or an incomplete one.
    Row("closed without a response", fault("close"), UNAVAILABLE),
    Row("a token with a truncated body", truncated(200, TOKEN), UNAVAILABLE),
    Row("closed in the header", sends_raw(b"HTTP/1.1 200 OK\r\nContent-Le"), UNAVAILABLE),
    Row("reset", responds_by(reset_connection), UNAVAILABLE),
    Row("not HTTP", sends_raw(b"220 mail.example.com ESMTP\r\n"), UNAVAILABLE),
    Row(
        "a header too long", sends_raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n{}"), UNAVAILABLE
    ),
    Row(
        "a chunk of negative size",
        sends_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n"),
        UNAVAILABLE,
    ),
    Row("invalid gzip", responds(200, b"abc", Content_Encoding="gzip"), UNAVAILABLE),
    Row(
        "a token in a gzip bomb",
        responds(200, gzip.compress(padded(TOKEN)), Content_Encoding="gzip"),
        UNAVAILABLE,
    ),
    Row("no first byte", with_deadlines(fault("timeout"), FIRST_BYTE_SECONDS=0.3), UNAVAILABLE, (0, 1)),
    Row("a slow body", with_deadlines(fault("drip"), TOTAL_SECONDS=0.5), UNAVAILABLE, (0, 1)),
    Row(
        "a slow header",
        with_deadlines(responds_by(send_endless_header), TOTAL_SECONDS=0.5),
        UNAVAILABLE,
        (0, 1),
    ),
    Row("connection refused", closed_port, UNAVAILABLE, call_counts=(0,)),
    Row("connect timeout", with_deadlines(full_backlog, CONNECT_SECONDS=0.3), UNAVAILABLE, call_counts=(0,)),
    Row("unknown host", unknown_host, UNAVAILABLE, call_counts=(0,)),
]


# --- people and their grants ---

# For tests that do not depend on the database.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def connected(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    connect(client, sandbox)
    return client


def get_token(client: FlaskClient) -> TestResponse:
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


def last_finished_at(app: Flask) -> datetime:
    finished_at = attempts(app)[-1].finished_at
    assert finished_at is not None
    return finished_at


def open_breakers(app: Flask) -> list[Breaker]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(Breaker).where(Breaker.closed_at.is_(None))))


def stored_token(app: Flask, column: str = "refresh_token") -> str:
    with app.app_context():
        return decrypt_token(services().token_cipher, grant(app), column)


def expire_tokens(app: Flask, *, left: float = -60, **values: object) -> None:
    """Make all access tokens, with a lifetime of an hour, expire in `left` seconds."""
    end = datetime.now(UTC) + left * SECOND
    with app.app_context(), writing() as db:
        times = {"expires_at": end, "refreshed_at": end - timedelta(hours=1)}
        db.execute(sa.update(AccessToken).values({**times, **values}))


@contextmanager
def using_endpoint(app: Flask, endpoint: TokenEndpoint) -> Iterator[None]:
    """Make the app call this endpoint."""
    accounts = app.extensions["backline"].accounts
    config = accounts._config.model_copy(update={"spotify_accounts_url": endpoint.url})
    with patch.object(accounts, "_config", config):
        yield


# --- responses without a token ---


@on_sqlite
@pytest.mark.parametrize("row", [row.parameter for row in TABLE])
def test_response_of_token_endpoint(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, row: Row
) -> None:
    effect = row.effect
    expire_tokens(app)
    before, refresh_token = grant(app), stored_token(app)
    with ExitStack() as stack:
        endpoint = row.start(stack, sandbox)
        stack.enter_context(using_endpoint(app, endpoint))

        response = get_token(connected)

        assert endpoint.call_count() in row.call_counts
    assert (response.status_code, slug(response)) == effect.problem
    check_retry_after(response, effect)
    [attempt] = attempts(app)
    assert (attempt.outcome, attempt.effective, attempt.generation) == (effect.outcome, None, 0)
    check_breakers(open_breakers(app), effect)
    check_grant(grant(app), before, attempt, effect)
    assert stored_token(app) == refresh_token
    assert connected.get("/api/spotify").json["status"] == effect.status

    check_recovery(connected, app, sandbox, effect)


def check_retry_after(response: TestResponse, effect: Effect) -> None:
    retry_after = response.headers.get("Retry-After")
    if effect.retry_after is None:
        assert retry_after is None
    else:
        least, most = effect.retry_after
        assert retry_after is not None
        assert least <= int(retry_after) <= most


def check_breakers(opened: list[Breaker], effect: Effect) -> None:
    assert [breaker.name for breaker in opened] == ([effect.reason] if effect.reason else [])
    assert [breaker.probe_at - breaker.opened_at for breaker in opened] == (
        [effect.open_for] if opened else []
    )


def check_grant(after: AccessToken, before: AccessToken, attempt: TokenRefresh, effect: Effect) -> None:
    assert (after.attempt_id, after.lease_until) == (None, None)
    assert after.state == effect.state
    assert attempt.finished_at is not None
    assert after.due_at is not None
    if effect.backoff is None:
        # Only the breaker delays this grant, which is refreshed after the others.
        assert (after.not_before, after.failures) == (None, 1)
    else:
        assert after.not_before == after.due_at
        assert effect.backoff[0] <= after.due_at - attempt.finished_at <= effect.backoff[1]
        assert after.failures == 1
    written = ("attempt_id", "lease_until", "state", "failures", "not_before", "due_at", "updated_at")
    assert columns(after, without=written) == columns(before, without=written)


def check_recovery(client: FlaskClient, app: Flask, sandbox: SandboxClient, effect: Effect) -> None:
    """Check that everything works after the fault and the wait."""
    sandbox.clear_faults()
    waits = effect.open_for or (effect.backoff or (SECOND,))[-1]
    advance_time(app, sandbox, waits.total_seconds() + 1)

    response = get_token(client)

    assert response.status_code == 200, response.text
    assert client.get("/api/spotify").json["status"] == "connected"
    after = grant(app)
    assert (after.state, after.generation, after.failures) == (GrantState.ACTIVE, 1, 0)
    assert (after.not_before, after.attempt_id, after.lease_until) == (None, None, None)
    assert [attempt.outcome for attempt in attempts(app)] == [effect.outcome, Outcome.REFRESHED]
    assert open_breakers(app) == []


def test_table_has_each_response_once() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 30


EXAMPLES = [
    row.parameter
    for row in TABLE
    if row.name
    in (
        "refresh token revoked",
        "invalid client",
        "429 for a day",
        "502 in Google's HTML",
        "closed without a response",
        "connection refused",
    )
]


@on_sqlite
@pytest.mark.parametrize("row", EXAMPLES)
def test_valid_token_is_returned_whatever_spotify_responds(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, row: Row
) -> None:
    token = get_token(connected).json["access_token"]
    expire_tokens(app, left=200)
    with ExitStack() as stack:
        stack.enter_context(using_endpoint(app, row.start(stack, sandbox)))
        before = get_token(connected)
        eventually(lambda: [attempt.outcome for attempt in attempts(app)][:1] == [row.effect.outcome])
        eventually(lambda: bool(open_breakers(app)) == (row.effect.reason is not None))

        after = get_token(connected)

    for response in (before, after):
        assert response.status_code == 200, response.text
        assert response.json["access_token"] == token
        assert 0 < response.json["expires_in"] <= 200
    assert grant(app).state == row.effect.state


# --- responses with a token ---


@dataclass(frozen=True)
class Success:
    """A response with a token: how it differs from `TOKEN`, and its effect."""

    name: str
    changed: dict[str, object]
    lifetime: int = 3600
    """In seconds."""
    refresh_token: str | None = None
    """The refresh token that is stored, or None for the one that was presented."""
    scope: str | None = None
    """The stored scope, or None if it does not change."""
    type: str = "application/json"


SUCCESSES = [
    Success("without a refresh token", {}),
    Success("with another refresh token", {"refresh_token": REFRESH_TOKEN}, refresh_token=REFRESH_TOKEN),
    Success("with fewer scopes", {"scope": "streaming"}, scope="streaming"),
    Success(
        "with all at once",
        {"refresh_token": REFRESH_TOKEN, "scope": "streaming", "expires_in": 1800},
        lifetime=1800,
        refresh_token=REFRESH_TOKEN,
        scope="streaming",
    ),
    Success("for 60 s", {"expires_in": 60}, lifetime=60),
    Success("for a year, limited to a day", {"expires_in": 31_536_000}, lifetime=86_400),
    Success("with unknown members", {"id_token": 5, "refresh_token_expires_in": 15_552_000}),
    Success(
        "with members of wrong types",
        {"token_type": None, "scope": ["x"], "expires_in": {}, "refresh_token": REFRESH_TOKEN},
        refresh_token=REFRESH_TOKEN,
    ),
    Success("as text", {}, type="text/plain"),
]


@on_sqlite
@pytest.mark.parametrize("success", SUCCESSES, ids=lambda success: success.name.replace(" ", "-"))
def test_usable_response_is_accepted(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, success: Success
) -> None:
    expire_tokens(app, failures=2)
    before, presented = grant(app), stored_token(app)
    raw = http_response(200, {**TOKEN, **success.changed}, Content_Type=success.type)
    with (
        running(FakeServer(lambda _, connection: connection.sendall(raw))) as server,
        using_endpoint(app, server.endpoint),
    ):
        response = get_token(connected)
        after, [attempt] = grant(app), attempts(app)
        expire_tokens(app)
        assert get_token(connected).status_code == 200

    refresh_token = success.refresh_token or presented
    assert response.status_code == 200, response.text
    assert response.json["access_token"] == ACCESS_TOKEN
    assert success.lifetime - 50 < response.json["expires_in"] <= success.lifetime
    assert (after.state, after.generation, after.failures) == (GrantState.ACTIVE, 1, 0)
    assert (after.not_before, after.attempt_id, after.lease_until) == (None, None, None)
    assert after.expires_at - attempt.started_at == success.lifetime * SECOND
    assert after.refreshed_at == attempt.started_at
    assert after.due_at is not None
    assert attempt.started_at < after.due_at < after.expires_at
    assert after.authorized_at == before.authorized_at
    assert after.scope == (before.scope if success.scope is None else success.scope) == response.json["scope"]
    assert (attempt.outcome, attempt.effective, attempt.generation) == (Outcome.REFRESHED, 1, 0)
    assert open_breakers(app) == []
    assert stored_token(app) == refresh_token
    assert stored_token(app, "access_token") == ACCESS_TOKEN
    assert [form["refresh_token"] for form in server.forms] == [[presented], [refresh_token]]
    assert connected.get("/api/spotify").json["status"] == "connected"


@on_sqlite
def test_huge_body_is_not_read_to_its_end(connected: FlaskClient, app: Flask) -> None:
    expire_tokens(app)
    start = f"HTTP/1.1 200 OK\r\nContent-Length: {64 * MIB}\r\n\r\n".encode()
    with (
        running(
            FakeServer(lambda server, connection: send_large_body(server, connection, start, 64))
        ) as server,
        using_endpoint(app, server.endpoint),
    ):
        response = get_token(connected)

    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
    assert server.sent < 32 * MIB  # the kernel buffers more than the 1 MiB that is read


# --- rejections, and the grant's age ---


def test_revoked_grant_ends_in_steps_until_new_consent(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire_tokens(app)
    refresh_token = stored_token(app)
    sandbox.revoke("mira_t_42")
    for step, backoff in enumerate((15 * MINUTE, DAY), 1):
        assert get_token(connected).status_code == 409
        suspect = grant(app)
        assert (suspect.state, suspect.failures, suspect.ended_at) == (GrantState.SUSPECT, step, None)
        assert suspect.not_before == suspect.due_at == last_finished_at(app) + backoff
        assert connected.get("/api/spotify").json["status"] == "suspect"
        # Before the backoff is over, Spotify is not called.
        advance_time(app, sandbox, backoff.total_seconds() - 30)
        assert get_token(connected).status_code == 409
        assert refresh_count(sandbox) == step
        advance_time(app, sandbox, 31)

    response = get_token(connected)

    assert (response.status_code, slug(response)) == (409, "spotify-reauthorization-required")
    ended = grant(app)
    assert ended.state == GrantState.REAUTHORIZATION_REQUIRED
    assert (ended.due_at, ended.not_before) == (None, None)
    assert ended.ended_at == last_finished_at(app)
    assert stored_token(app) == refresh_token  # for another week
    assert [attempt.outcome for attempt in attempts(app)] == [Outcome.INVALID_GRANT] * 3
    assert connected.get("/api/spotify").json["status"] == "reauthorization_required"
    advance_time(app, sandbox, 7200)
    assert get_token(connected).status_code == 409
    assert refresh_count(sandbox) == 3

    offers = [connected.get("/api/spotify/authorize").json for _ in range(2)]
    assert {(offer["status"], offer["reason"]) for offer in offers} == {
        ("authorization_required", "reauthorization_required")
    }
    assert len({offer["authorize_url"] for offer in offers}) == 2
    back = send_callback(connected, sandbox.consent(offers[1]["authorize_url"], person="mira_t_42"))
    assert back.json["status"] == "connected", back.text
    assert get_token(connected).status_code == 200
    renewed = grant(app)
    assert (renewed.state, renewed.failures, renewed.ended_at) == (GrantState.ACTIVE, 0, None)


@on_sqlite
@pytest.mark.parametrize("rejections", [1, 2])
def test_false_rejection_has_no_lasting_effect(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, rejections: int
) -> None:
    expire_tokens(app)
    before = grant(app)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=rejections)
    for backoff in (15 * MINUTE, DAY)[:rejections]:
        assert get_token(connected).status_code == 409
        advance_time(app, sandbox, backoff.total_seconds() + 1)

    assert get_token(connected).status_code == 200

    refreshed = ("access_token", "refresh_token", "generation")
    times = ("expires_at", "authorized_at", "due_at", "refreshed_at", "created_at", "updated_at")
    assert columns(grant(app), without=refreshed + times) == columns(before, without=refreshed + times)
    assert connected.get("/api/spotify").json["status"] == "connected"
    # The next rejection counts as the first one.
    expire_tokens(app)
    sandbox.fault(on="refresh", kind="false_invalid_grant")
    assert get_token(connected).status_code == 409
    suspect = grant(app)
    assert (suspect.state, suspect.failures) == (GrantState.SUSPECT, 1)
    assert suspect.not_before == last_finished_at(app) + 15 * MINUTE


@on_sqlite
@pytest.mark.parametrize(
    ("days", "state", "outcome"),
    [
        (179, GrantState.SUSPECT, Outcome.INVALID_GRANT),
        (180, GrantState.REAUTHORIZATION_REQUIRED, Outcome.AGED),
    ],
)
def test_rejection_of_aged_grant_ends_it_immediately(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, days: int, state: GrantState, outcome: Outcome
) -> None:
    expire_tokens(app, authorized_at=datetime.now(UTC) - days * DAY - MINUTE)
    sandbox.fault(on="refresh", kind="refresh_token_expired")

    response = get_token(connected)

    assert (response.status_code, slug(response)) == (409, "spotify-reauthorization-required")
    assert grant(app).state == state
    assert [attempt.outcome for attempt in attempts(app)] == [outcome]
    has_ended = state == GrantState.REAUTHORIZATION_REQUIRED
    assert (grant(app).due_at is None, grant(app).ended_at is not None) == (has_ended, has_ended)


@on_sqlite
def test_aged_grant_that_spotify_accepts_stays_active(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire_tokens(app, authorized_at=datetime.now(UTC) - 190 * DAY)

    assert get_token(connected).status_code == 200
    assert grant(app).state == GrantState.ACTIVE


# --- misconfiguration and rate limits affect all grants ---


@pytest.fixture
def people(new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient) -> list[FlaskClient]:
    """Return the clients of three people whose access tokens have expired."""
    people = [new_client() for _ in range(3)]
    for client, person in zip(people, ("mira_t_42", "jonas.k", "aiko-87"), strict=True):
        connect(client, sandbox, person=person)
    expire_tokens(app)
    return people


@on_sqlite
def test_misconfiguration_is_detected_by_one_call_and_marks_no_grant(
    people: list[FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    before = grants(app)
    sandbox.fault(on="refresh", kind="invalid_client", times=None)

    responses = [get_token(client) for client in people]

    assert [(response.status_code, slug(response)) for response in responses] == [
        (503, "spotify-misconfigured")
    ] * 3
    assert all(0 < int(response.headers["Retry-After"]) <= 60 for response in responses[1:])
    assert refresh_count(sandbox) == 1
    assert [attempt.outcome for attempt in attempts(app)] == [Outcome.MISCONFIGURED]
    after = grants(app)
    assert [columns(row) for row in after[1:]] == [columns(row) for row in before[1:]]
    timing = ("due_at", "failures", "updated_at")  # it is refreshed after the others, without a backoff
    assert columns(after[0], without=timing) == columns(before[0], without=timing)
    assert [client.get("/api/spotify").json["status"] for client in people] == ["connected"] * 3

    sandbox.clear_faults()
    advance_time(app, sandbox, 20)
    assert [get_token(client).status_code for client in people] == [503] * 3
    assert refresh_count(sandbox) == 1
    advance_time(app, sandbox, 41)
    assert [get_token(client).status_code for client in people] == [200] * 3
    assert refresh_count(sandbox) == 4
    assert open_breakers(app) == []


def test_retry_after_applies_to_other_people_too(
    people: list[FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    sandbox.fault(on="refresh", kind="rate_limited", retry_after=1200)
    first, other, third = people
    assert int(get_token(first).headers["Retry-After"]) in seconds_left(1200)
    others_before = columns(grants(app)[1])

    for left, seconds in ((1200, 600), (600, 540), (60, 61)):
        response = get_token(other)
        assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
        assert 0 < int(response.headers["Retry-After"]) <= left
        advance_time(app, sandbox, seconds)
    assert refresh_count(sandbox) == 1
    assert len(attempts(app)) == 1
    times = {"expires_at", "authorized_at", "due_at", "refreshed_at", "created_at", "updated_at"}
    now = columns(grants(app)[1])
    assert {name for name in now if now[name] != others_before[name]} <= times

    assert [get_token(client).status_code for client in (other, third, first)] == [200] * 3
    assert refresh_count(sandbox) == 4
    assert open_breakers(app) == []


@on_sqlite
def test_success_of_earlier_attempt_does_not_end_retry_after(
    people: list[FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    first, second, third = people
    sandbox.fault(on="refresh", kind="park")
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(get_token, another_tab(first))
        sandbox.wait_for_held(1)
        sandbox.fault(on="refresh", kind="rate_limited", retry_after=3600)
        assert int(get_token(second).headers["Retry-After"]) in seconds_left(3600)
        sandbox.release()
        assert early.result().status_code == 200

    assert get_token(third).status_code == 503
    assert refresh_count(sandbox) == 2
