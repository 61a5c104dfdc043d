"""When Spotify fails: which calls are retried, and when the circuit breaker opens."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.infra import sockets
from app.resilience import circuit_breaker
from app.spotify.gateway import proxy
from tests.helpers.flows import another_tab, connect, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, free_port
from tests.helpers.upstream import (
    JSON,
    Received,
    Reply,
    Upstream,
    connect_through,
    problem_of_spotify,
    running_upstream,
)

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

GATEWAY = "/api/spotify/v1"
OK = Reply(200, b'{"fine":1}')
NO_REPLY = Reply(0)
MALFORMED = Reply(201, b'{"snapshot_id": "x"}\r\n', headers=(("Transfer-Encoding", "chunked"),))
TOO_LARGE = Reply(201, b" " * (8 * 1024 * 1024 + 1))
FAILURES = {
    "500": problem_of_spotify(500, "Internal server error"),
    "502": problem_of_spotify(502, "Bad gateway."),
    "502 html": Reply(502, b"<!DOCTYPE html><title>Error 502</title>", "text/html; charset=UTF-8"),
    "503": Reply(503, b"upstream connect error or disconnect/reset before headers.", "text/plain"),
    "503 empty": Reply(503, b"", None),
    "504": Reply(504, b"", "text/plain"),
}
# Repeating these can have an additional effect.
WRITES = [("POST", "me/player/next"), ("PUT", "me/player/play"), ("DELETE", "playlists/x/items")]


def outcome_is_unknown(response: Any) -> bool:
    assert (response.status_code, slug(response)) == (409, "spotify-outcome-unknown"), response.text
    assert "Retry-After" not in response.headers
    return True


def is_unavailable(response: Any) -> bool:
    assert (response.status_code, slug(response)) == (503, "spotify-unavailable"), response.text
    assert 1 <= int(response.headers["Retry-After"]) <= LONG
    return True


def test_read_is_retried_after_one_failure(connected: FlaskClient, upstream: Upstream) -> None:
    for kind, failure in FAILURES.items():
        upstream.calls.clear()
        upstream.replies(failure, OK)
        response = connected.get(f"{GATEWAY}/tracks/x?a={quote(kind)}")
        assert (response.status_code, response.data) == (200, OK.body)
        assert [call.target for call in upstream.calls] == [f"/v1/tracks/x?a={quote(kind)}"] * 2


def test_read_that_fails_twice_returns_spotifys_response(connected: FlaskClient, upstream: Upstream) -> None:
    for number, reply in enumerate(FAILURES.values()):
        upstream.calls.clear()
        upstream.replies(Reply(500, b"the first"), reply)
        response = connected.get(f"{GATEWAY}/tracks/{number}")
        assert (response.status_code, response.data) == (reply.status, reply.body)
        assert response.headers.get("Content-Type") == reply.content_type
        assert len(upstream.calls) == 2
        upstream.replies(OK)
        connected.get(f"{GATEWAY}/tracks/fine")  # otherwise, there would be five failures in a row


def test_read_is_not_retried_if_spotify_asks_for_a_wait(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.replies(Reply(503, b"later", "text/plain", (("Retry-After", "30"),)))

    response = connected.get(f"{GATEWAY}/me/player")

    assert (response.status_code, response.data, response.headers["Retry-After"]) == (503, b"later", "30")
    assert len(upstream.calls) == 1


def test_write_is_not_retried_if_it_may_have_been_sent(connected: FlaskClient, upstream: Upstream) -> None:
    lost = (NO_REPLY, MALFORMED, TOO_LARGE)
    for reply, (method, path) in zip([*FAILURES.values(), *lost], itertools.cycle(WRITES), strict=False):
        upstream.calls.clear()
        upstream.replies(reply, OK)
        response = connected.open(f"{GATEWAY}/{path}", method=method)
        if reply in lost:
            assert outcome_is_unknown(response)
        else:
            assert (response.status_code, response.data) == (reply.status, reply.body)
        assert len(upstream.calls) == 1
        connected.get(f"{GATEWAY}/tracks/fine")  # otherwise, there would be five failures in a row


def test_outcome_of_a_write_is_unknown_if_it_is_lost_after_a_401(
    connected: FlaskClient, upstream: Upstream
) -> None:
    upstream.replies(Reply(401), NO_REPLY)

    assert outcome_is_unknown(connected.post(f"{GATEWAY}/me/player/next"))
    assert len(upstream.calls) == 2


def test_read_is_retried_without_a_response(connected: FlaskClient, upstream: Upstream) -> None:
    upstream.replies(NO_REPLY, OK)
    assert connected.get(f"{GATEWAY}/me/player").data == OK.body
    assert len(upstream.calls) == 2

    upstream.calls.clear()
    upstream.replies(NO_REPLY)
    assert is_unavailable(connected.get(f"{GATEWAY}/tracks/x"))
    assert len(upstream.calls) == 2

    upstream.calls.clear()
    upstream.replies(FAILURES["502"], NO_REPLY)
    response = connected.get(f"{GATEWAY}/tracks/y")
    assert (response.status_code, response.data) == (502, FAILURES["502"].body)
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_call_is_retried_if_it_was_not_sent(
    client: FlaskClient,
    app: Flask,
    sandbox: SandboxClient,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """The server starts after the first connection was refused."""
    connect_through(client, sandbox, upstream)
    port = free_port()
    app.extensions["backline"].web_api._url = f"http://127.0.0.1:{port}/v1"
    really, appeared = sockets.connect, []
    with ExitStack() as stack:

        def connect_or_appear(*args: Any, **options: Any) -> Any:
            try:
                return really(*args, **options)
            except ConnectionRefusedError:
                appeared.append(stack.enter_context(running_upstream(port)))
                raise

        monkeypatch.setattr(sockets, "connect", connect_or_appear)
        body = b"{}" if method != "GET" else b""

        response = client.open(
            f"{GATEWAY}/me/player", method=method, data=body, content_type=JSON if body else None
        )

        assert (response.status_code, response.json) == (200, {"call": 1})
        [late] = appeared
        assert [(call.method, call.target, call.body) for call in late.calls] == [
            (method, "/v1/me/player", body)
        ]


def test_write_survives_a_connection_closed_while_idle(connected: FlaskClient, upstream: Upstream) -> None:
    """Spotify closes an idle connection, which is noticed before a call uses it."""
    for _ in range(3):
        assert connected.post(f"{GATEWAY}/me/player/next").status_code == 200
        upstream.close_connections()

    assert len(upstream.calls) == 3


def test_refused_connection_is_unavailable(connected: FlaskClient, app: Flask, upstream: Upstream) -> None:
    app.extensions["backline"].web_api._url = f"http://127.0.0.1:{free_port()}/v1"

    for response in (connected.get(f"{GATEWAY}/me/player"), connected.post(f"{GATEWAY}/me/player/next")):
        assert is_unavailable(response)


@pytest.mark.parametrize("kind", ["timeout", "drip"])
def test_response_after_the_deadline_is_discarded(
    client: FlaskClient, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    connect(client, sandbox)
    monkeypatch.setattr(proxy, "CALL_SECONDS", 0.5)
    sandbox.clear_calls()
    sandbox.fault(on="player", kind=kind, times=None)

    assert is_unavailable(client.get(f"{GATEWAY}/me/player"))
    # A call that has used up its time is not retried. (On a busy machine, it may not even be sent.)
    assert len(sandbox.calls("/v1/me/player")) <= 1
    sandbox.clear_faults()


# --- the circuit breaker --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _five_failures_of_one_person_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "FAILURES_OF_ONE", circuit_breaker.FAILURES)
    monkeypatch.setattr(circuit_breaker, "PAUSE_SECONDS", LONG)  # tests end it


def end_pause(app: Flask) -> None:
    app.extensions["backline"].web_api._limits.deployment.circuit_breaker._next_trial = 0.0


@pytest.fixture
def open_circuit(connected: FlaskClient, upstream: Upstream) -> FlaskClient:
    """Return the client of a person whose calls have just failed five times in a row."""
    upstream.replies(FAILURES["503"])
    for number in range(1, 6):
        assert connected.post(f"{GATEWAY}/me/player/next").data == FAILURES["503"].body
        assert len(upstream.calls) == number
    upstream.calls.clear()
    upstream.replies(OK)
    return connected


def test_circuit_breaker_opens_after_five_failures_in_a_row(
    open_circuit: FlaskClient, upstream: Upstream
) -> None:
    for _ in range(3):
        assert is_unavailable(open_circuit.post(f"{GATEWAY}/me/player/next"))
        assert is_unavailable(open_circuit.get(f"{GATEWAY}/me/player"))

    assert upstream.calls == []


def test_success_resets_the_circuit_breaker(connected: FlaskClient, upstream: Upstream) -> None:
    for _ in range(3):
        upstream.replies(*[FAILURES["503"]] * 4, OK)
        for _ in range(5):
            connected.post(f"{GATEWAY}/me/player/next")
    # Errors that concern only one call, and rejections, do not count.
    for reply in (FAILURES["500"], Reply(404), Reply(403)):
        upstream.replies(reply)
        for _ in range(6):
            connected.post(f"{GATEWAY}/me/player/next")

    assert len(upstream.calls) == 33


def test_successful_trial_call_closes_the_circuit_breaker(
    open_circuit: FlaskClient, app: Flask, upstream: Upstream
) -> None:
    arrived, released = threading.Event(), threading.Event()

    def reply(_: Received) -> Reply:
        arrived.set()
        assert released.wait(LONG)
        return OK

    upstream.reply = reply
    end_pause(app)
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(another_tab(open_circuit).post, f"{GATEWAY}/me/player/next")
        assert arrived.wait(LONG)
        for _ in range(3):
            assert is_unavailable(open_circuit.post(f"{GATEWAY}/me/player/next"))
        assert len(upstream.calls) == 1
        released.set()
        assert probe.result().status_code == 200

    for _ in range(3):
        assert open_circuit.post(f"{GATEWAY}/me/player/next").status_code == 200
    assert len(upstream.calls) == 4


def test_failed_trial_call_keeps_the_circuit_breaker_open(
    app: Flask, connected: FlaskClient, upstream: Upstream
) -> None:
    upstream.replies(NO_REPLY)
    for _ in range(5):
        assert outcome_is_unknown(connected.post(f"{GATEWAY}/me/player/next"))
    assert len(upstream.calls) == 5

    end_pause(app)
    assert outcome_is_unknown(connected.post(f"{GATEWAY}/me/player/next"))
    assert is_unavailable(connected.post(f"{GATEWAY}/me/player/next"))
    assert len(upstream.calls) == 6

    upstream.replies(OK)
    end_pause(app)
    assert connected.post(f"{GATEWAY}/me/player/next").status_code == 200
    assert len(upstream.calls) == 7
