"""Tokens that Spotify rejects are replaced once, and the call is repeated. Other rejections are returned."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import writing
from app.models import AccessToken
from tests.helpers.flows import another_tab, refresh_count, send_callback, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG
from tests.helpers.upstream import JSON, Received, Reply, Upstream, connect_through, problem_of_spotify

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

GATEWAY = "/api/spotify/v1"
BODY = b'{"uris" : ["spotify:track:4iV5W9uYEdYUVa79Axb7Rh"],\n "position_ms":0}'

# What Spotify says, and what a proxy might make of it.
UNAUTHORIZED = {
    "since 2026": problem_of_spotify(401, "Missing/invalid/expired access token"),
    "text": Reply(401, b"Unauthorized", "text/plain"),
    "empty": Reply(401, b"", None),
    "not an object": Reply(401, b'["Permissions missing"]', JSON),
    "oauth's shape": Reply(401, b'{"error":"invalid_token","error_description":"Permissions missing"}', JSON),
    "403's message": problem_of_spotify(401, "Insufficient client scope"),
}
PERMISSIONS_MISSING = problem_of_spotify(401, "Permissions missing")
INSUFFICIENT_SCOPE = problem_of_spotify(403, "Insufficient client scope")
FORBIDDEN = {
    "json": problem_of_spotify(403, "Forbidden"),
    "premium": problem_of_spotify(403, "Player command failed: Premium required", "PREMIUM_REQUIRED"),
    "restriction": problem_of_spotify(403, "Player command failed: Restriction violated", "UNKNOWN"),
    "401's message": problem_of_spotify(403, "Permissions missing"),
    "scope in another member": Reply(403, b'{"message":"Insufficient client scope"}', JSON),
}
FORBIDDEN_TEXTS = {
    "allowlist": b"User not registered in the Developer Dashboard",
    "allowlist 2024": b"Check settings on developer.spotify.com/dashboard, the user may not be registered.",
    "allowlist 2026": b"The user is not registered for this application. "
    b"Please check your settings on https://developer.spotify.com/dashboard.",
    "owner's premium": b"Active premium subscription required for the owner of the app. When the "
    b"subscription status changes, it can take a few hours before requests are allowed again.",
    "scope": b"Insufficient client scope",
    "empty": b"",
}


@pytest.mark.parametrize(
    ("method", "wording"), [("GET", "since 2026"), *(("PUT", name) for name in UNAUTHORIZED)]
)
def test_rejected_token_is_replaced_and_the_call_repeated(
    client: FlaskClient, sandbox: SandboxClient, upstream: Upstream, method: str, wording: str
) -> None:
    old = connect_through(client, sandbox, upstream)
    upstream.replies(UNAUTHORIZED[wording], Reply(200, b'{"fine":1}'))
    body = BODY if method == "PUT" else b""

    response = client.open(
        f"{GATEWAY}/me/player?a=%2F&a=b", method=method, data=body, content_type=JSON if body else None
    )

    assert (response.status_code, response.data) == (200, b'{"fine":1}')
    first, second = upstream.calls
    assert first.token == old
    assert second.token not in (old, None)
    assert second.token == client.get("/api/spotify/token").json["access_token"]
    assert (second.method, second.target, second.body) == (method, "/v1/me/player?a=%2F&a=b", body)
    assert (first.method, first.target, first.body) == (second.method, second.target, second.body)
    assert second.headers["Content-Type"] == first.headers["Content-Type"] == (JSON if body else None)
    assert refresh_count(sandbox) == 1


@pytest.mark.parametrize("wording", ["since 2026", "empty"])
def test_second_401_is_returned_unchanged(
    connected: FlaskClient, sandbox: SandboxClient, upstream: Upstream, wording: str
) -> None:
    rejection = UNAUTHORIZED[wording]
    upstream.replies(Reply(401, b"the first"), rejection)

    response = connected.post(f"{GATEWAY}/me/player/next")

    assert (response.status_code, response.data) == (401, rejection.body)
    assert response.headers.get("Content-Type") == rejection.content_type
    assert "WWW-Authenticate" not in response.headers  # a browser would ask for a password
    assert (len(upstream.calls), refresh_count(sandbox)) == (2, 1)


def test_new_token_that_is_rejected_is_not_replaced_again(
    connected: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    upstream.replies(UNAUTHORIZED["since 2026"])

    for number in range(4):
        assert connected.get(f"{GATEWAY}/tracks/{number}").status_code == 401
        assert connected.post(f"{GATEWAY}/me/player/next").status_code == 401

    assert (len(upstream.calls), refresh_count(sandbox)) == (16, 1)
    upstream.replies(Reply(204, b"", None))
    assert connected.post(f"{GATEWAY}/me/player/next").status_code == 204


@pytest.mark.settings(THREADS="64")  # slots for all callers
def test_simultaneous_401s_in_two_workers_cause_one_refresh(
    client: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient, upstream: Upstream
) -> None:
    old = connect_through(client, sandbox, upstream)
    all_here = threading.Barrier(20, timeout=LONG)

    def reply(call: Received) -> Reply:
        if call.token != old:
            return Reply(204, b"", None)
        all_here.wait()
        return UNAUTHORIZED["since 2026"]

    upstream.reply = reply

    def call(number: int) -> int:
        tab = another_tab(client, (app, another_worker)[number % 2])
        body, target = BODY + b" " * number, f"{GATEWAY}/me/player?n={number}"
        return tab.put(target, data=body, content_type=JSON).status_code

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(call, range(20))) == [204] * 20

    assert refresh_count(sandbox) == 1
    assert len({call.token for call in upstream.calls}) == 2
    sent = sorted((call.target, call.body) for call in upstream.calls)
    expected = [(f"/v1/me/player?n={number}", BODY + b" " * number) for number in range(20)]
    assert sent == sorted(itertools.chain(expected, expected))


def test_late_401_uses_the_token_that_has_replaced_it(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, upstream: Upstream
) -> None:
    """By the time a slow 401 arrives, the token has been replaced."""
    arrived, released = threading.Event(), threading.Event()

    def reply(call: Received) -> Reply:
        if call.token != old:
            return Reply(204, b"", None)
        if call.target == "/v1/me/player/next":
            arrived.set()
            assert released.wait(LONG)
        return UNAUTHORIZED["since 2026"]

    old = connected.get("/api/spotify/token").json["access_token"]
    upstream.reply = reply
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(another_tab(connected).post, f"{GATEWAY}/me/player/next")
        assert arrived.wait(LONG)
        assert connected.put(f"{GATEWAY}/me/player/play").status_code == 204
        with app.app_context(), writing() as db:
            db.execute(sa.update(AccessToken).values(refreshed_at=datetime.now(UTC) - timedelta(minutes=1)))
        released.set()
        assert slow.result().status_code == 204

    assert (len(upstream.calls), refresh_count(sandbox)) == (4, 1)


def test_missing_scope_is_reported_without_a_refresh(
    connected: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    for rejection, method in itertools.product((PERMISSIONS_MISSING, INSUFFICIENT_SCOPE), ("GET", "PUT")):
        upstream.replies(rejection)
        response = connected.open(f"{GATEWAY}/me/player", method=method)
        assert (response.status_code, slug(response)) == (403, "insufficient-scope")
        assert response.json["error"] == {"status": 403, "message": "Insufficient client scope"}
    assert (len(upstream.calls), refresh_count(sandbox)) == (4, 0)


def test_missing_scope_is_reported_after_a_refresh(
    connected: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    for rejection in (PERMISSIONS_MISSING, INSUFFICIENT_SCOPE):
        upstream.replies(UNAUTHORIZED["since 2026"], rejection)
        assert slug(connected.put(f"{GATEWAY}/me/player")) == "insufficient-scope"

    assert (len(upstream.calls), refresh_count(sandbox)) == (4, 1)


def test_other_403s_are_returned_unchanged(
    connected: FlaskClient, sandbox: SandboxClient, upstream: Upstream
) -> None:
    before = outcome_count(connected, "403"), outcome_count(connected, "403-text")
    texts = [Reply(403, text, "text/plain; charset=utf-8") for text in FORBIDDEN_TEXTS.values()]
    for reply in [*FORBIDDEN.values(), *texts]:
        upstream.replies(reply)
        for response in (connected.get(f"{GATEWAY}/me/player"), connected.put(f"{GATEWAY}/me/player/play")):
            assert (response.status_code, response.data) == (403, reply.body)
            assert response.content_type == reply.content_type
            assert response.headers["X-Cache"] == "miss"  # the permission can be granted at any moment

    assert refresh_count(sandbox) == 0
    assert outcome_count(connected, "403") - before[0] == len(FORBIDDEN)
    assert outcome_count(connected, "403-text") - before[1] == len(FORBIDDEN_TEXTS)


def test_ended_grant_is_reported_with_the_authorize_url(
    connected: FlaskClient,
    new_client: Callable[[], FlaskClient],
    sandbox: SandboxClient,
    upstream: Upstream,
) -> None:
    upstream.replies(UNAUTHORIZED["since 2026"])
    sandbox.revoke("mira_t_42")

    for response in (connected.get(f"{GATEWAY}/me/player"), connected.post(f"{GATEWAY}/me/player/next")):
        assert (response.status_code, slug(response)) == (409, "spotify-reauthorization-required")
        assert "X-Cache" not in response.headers
    # No further refresh is attempted, and no call is repeated.
    assert (len(upstream.calls), refresh_count(sandbox)) == (2, 1)

    # The URL is valid in this session only, which it connects again.
    callback = sandbox.consent(response.json["authorize_url"])
    assert slug(send_callback(new_client(), callback)) == "spotify-state-mismatch"
    upstream.is_profile_of("mira_t_42")
    assert send_callback(connected, callback).json["status"] == "connected"
    upstream.replies(Reply(200, b"[]"))
    assert connected.get(f"{GATEWAY}/me/tracks").data == b"[]"


@pytest.mark.parametrize(
    ("kind", "expected"), [("google_502", "spotify-unavailable"), ("invalid_client", "spotify-misconfigured")]
)
def test_failed_refresh_after_a_401_keeps_the_connection(
    connected: FlaskClient, sandbox: SandboxClient, upstream: Upstream, kind: str, expected: str
) -> None:
    upstream.replies(UNAUTHORIZED["since 2026"])
    sandbox.fault(on="refresh", kind=kind, times=None)

    response = connected.put(f"{GATEWAY}/me/player")

    assert (response.status_code, slug(response)) == (503, expected)
    assert int(response.headers["Retry-After"]) >= 1
    assert len(upstream.calls) == 1
    assert connected.get("/api/spotify").json["status"] == "connected"


def outcome_count(client: FlaskClient, outcome: str) -> float:
    """Return how many PUTs to /me/player/play had this outcome."""
    start = "backline_gateway_requests_total{"
    labels = ('method="PUT"', 'route="me/player/play"', f'outcome="{outcome}"')
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(start) and all(label in line for label in labels)]
    return sum(float(line.rpartition(" ")[2]) for line in found)
