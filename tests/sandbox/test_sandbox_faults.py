"""The sandbox's faults: their responses, the calls they apply to, and held calls."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually
from tests.sandbox.conftest import App, Visitor

ENVOY_BODY = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"


def oauth(error: str, description: str | None = None) -> dict[str, Any]:
    return {"error": error} if description is None else {"error": error, "error_description": description}


def api_error(status: int, message: str, **more: str) -> dict[str, Any]:
    return {"error": {"status": status, "message": message, **more}}


# Kind, status, and body: JSON as a dict or list, or text. None: tested elsewhere.
TOKEN_RESPONSES: list[tuple[str, int, Any]] = [
    ("google_502", 502, None),
    ("envoy_503", 503, ENVOY_BODY),
    ("empty_503", 503, ""),
    ("html_503", 503, None),
    ("empty_504", 504, ""),
    ("json_502", 502, api_error(502, "Bad gateway.")),
    ("json_500", 500, None),
    ("server_error", 500, oauth("server_error")),
    ("truncated_json", 200, '{"access_token":"BQ'),
    ("no_access_token", 200, {"token_type": "Bearer", "expires_in": 3600}),
    ("wrong_types", 200, None),
    ("json_list", 200, []),
    ("html_200", 200, None),
    ("empty_200", 200, ""),
    ("false_invalid_grant", 400, oauth("invalid_grant", "Refresh token revoked")),
    ("invalid_code", 400, oauth("invalid_grant", "Invalid authorization code")),
    ("code_expired", 400, oauth("invalid_grant", "Authorization code expired")),
    ("invalid_redirect_uri", 400, oauth("invalid_grant", "Invalid redirect URI")),
    ("verifier_incorrect", 400, oauth("invalid_grant", "code_verifier was incorrect")),
    ("invalid_refresh_token", 400, oauth("invalid_grant", "Invalid refresh token")),
    ("refresh_token_revoked", 400, oauth("invalid_grant", "Refresh token revoked")),
    ("refresh_token_expired", 400, oauth("invalid_grant", "Refresh token expired")),
    ("invalid_grant_bare", 400, oauth("invalid_grant")),
    ("invalid_client", 400, oauth("invalid_client", "Invalid client")),
    ("invalid_client_secret", 400, oauth("invalid_client", "Invalid client secret")),
    ("invalid_client_bare", 400, oauth("invalid_client")),
    ("unauthorized_client", 400, oauth("unauthorized_client")),
    ("grant_type_missing", 400, oauth("unsupported_grant_type", "grant_type parameter is missing")),
    ("unsupported_grant_type", 400, oauth("unsupported_grant_type", "grant_type is not supported")),
    ("code_missing", 400, oauth("invalid_request", "code must be supplied")),
    ("refresh_token_missing", 400, oauth("invalid_request", "refresh_token must be supplied")),
]
NO_OWNER = (
    "Active premium subscription required for the owner of the app. When the subscription status "
    "changes, it can take a few hours before requests are allowed again."
)
API_RESPONSES = [
    ("unauthorized_new", 401, api_error(401, "Missing/invalid/expired access token")),
    ("unauthorized_expired", 401, api_error(401, "The access token expired")),
    ("unauthorized_invalid", 401, api_error(401, "Invalid access token")),
    ("unauthorized_no_token", 401, api_error(401, "No token provided")),
    ("unauthorized_missing", 401, api_error(401, "Access token missing")),
    ("permissions_missing", 401, api_error(401, "Permissions missing")),
    ("bearer_only", 400, api_error(400, "Only valid bearer authentication supported")),
    ("insufficient_scope", 403, api_error(403, "Insufficient client scope")),
    ("forbidden", 403, api_error(403, "Forbidden")),
    ("not_registered", 403, "User not registered in the Developer Dashboard"),
    (
        "not_registered_2024",
        403,
        "Check settings on developer.spotify.com/dashboard, the user may not be registered.",
    ),
    ("not_registered_2026", 403, None),
    ("owner_not_premium", 403, NO_OWNER),
    (
        "premium_required",
        403,
        api_error(403, "Player command failed: Premium required", reason="PREMIUM_REQUIRED"),
    ),
    (
        "restriction_violated",
        403,
        api_error(403, "Player command failed: Restriction violated", reason="UNKNOWN"),
    ),
    (
        "no_active_device",
        404,
        api_error(404, "Player command failed: No active device found", reason="NO_ACTIVE_DEVICE"),
    ),
    ("device_not_found", 404, api_error(404, "Device not found")),
    ("not_found", 404, api_error(404, "Resource not found")),
    ("no_content", 204, ""),
    ("bare_word", 200, "q7RtZ0"),
]
TRANSPORT_FAULTS = [
    "close",
    "cut_body",
    "drip",
    "gzip_bomb",
    "huge_body",
    "rate_limited",
    "redirect_302",
    "redirect_307",
]
HOLDING_FAULTS = ["park", "slow", "timeout"]


def assert_body(response: requests.Response, expected: object) -> None:
    if isinstance(expected, str):
        assert response.text == expected
    elif expected is not None:
        assert response.json() == expected


@pytest.mark.parametrize(("kind", "status", "body"), TOKEN_RESPONSES, ids=[a[0] for a in TOKEN_RESPONSES])
def test_fault_applies_to_the_token_endpoint(app: App, kind: str, status: int, body: object) -> None:
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind=kind)
    response = app.refresh(token)
    assert response.status_code == status
    assert_body(response, body)
    assert app.refresh(token).status_code == 200
    assert [call["fault"] for call in app.sandbox.calls(grant_type="refresh_token")] == [kind, None]


@pytest.mark.parametrize(("kind", "status", "body"), API_RESPONSES, ids=[a[0] for a in API_RESPONSES])
def test_fault_applies_to_the_web_api(mira: Visitor, kind: str, status: int, body: object) -> None:
    mira.app.sandbox.fault(on="api", kind=kind)
    response = mira("GET", "me")
    assert response.status_code == status
    assert_body(response, body)
    if kind.startswith("unauthorized"):
        assert response.headers["WWW-Authenticate"].startswith('Bearer realm="spotify", error="')
    assert mira("GET", "me").status_code == 200


def test_every_kind_is_tested(sandbox: SandboxClient) -> None:
    tested = {row[0] for row in TOKEN_RESPONSES + API_RESPONSES} | {
        *TRANSPORT_FAULTS,
        *HOLDING_FAULTS,
        "changed_members",
    }
    response = requests.post(f"{sandbox.url}/_sandbox/faults", json={"on": "api", "kind": "?"}, timeout=60)
    assert set(response.json()["allowed"]) == tested


def test_owner_without_premium_gets_159_bytes() -> None:
    assert len(NO_OWNER) == 159


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("text", "Too many requests"),
        ("json", api_error(429, "API rate limit exceeded")),
        ("quota", api_error(429, "Too many requests", reason="QUOTA_EXCEEDED")),
        ("empty", ""),
    ],
)
@pytest.mark.parametrize("retry_after", [None, 0, 48925])
def test_rate_limit_has_spotifys_bodies(
    mira: Visitor, body: str, expected: object, retry_after: int | None
) -> None:
    mira.app.sandbox.fault(on="me", kind="rate_limited", body=body, retry_after=retry_after)
    response = mira("GET", "me")
    assert response.status_code == 429
    assert response.headers.get("Retry-After") == (None if retry_after is None else str(retry_after))
    assert_body(response, expected)


def test_retry_after_works_with_other_kinds(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="empty_503", retry_after=7)
    assert mira("GET", "me").headers["Retry-After"] == "7"


@pytest.mark.parametrize("status", [302, 307])
def test_redirect_fault_redirects(app: App, status: int) -> None:
    app.sandbox.fault(on="token", kind=f"redirect_{status}", location="https://evil.example/x")
    response = app.token(grant_type="client_credentials")
    assert (response.status_code, response.headers["Location"]) == (status, "https://evil.example/x")


def test_closed_connection_sends_nothing(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="close")
    with pytest.raises(requests.ConnectionError):
        mira("GET", "me")
    (call,) = mira.app.sandbox.calls("/v1/me")
    assert call["status"] is None
    assert call["finished_at"]


def test_truncated_body_is_shorter_than_announced(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="cut_body", after_effect=True)
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        mira("GET", "me")


def test_huge_body_has_the_requested_size(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="huge_body", bytes=3_000_000)
    assert len(mira("GET", "me").content) > 3_000_000


def test_gzip_bomb_expands_to_the_requested_size(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="gzip_bomb", bytes=3_000_000)
    response = mira("GET", "me", stream=True)
    assert int(response.headers["Content-Length"]) < 30_000
    assert len(response.content) == 3_000_000


def test_drip_outlasts_a_read_timeout(mira: Visitor) -> None:
    def take_longer_than_the_timeout() -> bool:
        mira.app.sandbox.fault(on="me", kind="drip", seconds=0.6, after_effect=True)
        began = time.monotonic()
        response = mira("GET", "me", timeout=0.5)
        assert time.monotonic() - began > 0.5
        return bool(response.json()["id"] == "mira_t_42")

    eventually(take_longer_than_the_timeout, 60)  # on a busy machine, even a byte may take that long


def test_timeout_holds_and_then_drops_the_call(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="timeout", seconds=0.2)
    with pytest.raises(requests.ConnectionError):
        mira("GET", "me")
    mira.app.sandbox.fault(on="me", kind="timeout", seconds=60)
    with pytest.raises(requests.ReadTimeout):
        mira("GET", "me", timeout=0.2)
    mira.app.sandbox.wait_for_held(1)
    assert mira.app.sandbox.release() == 1


def test_slow_call_takes_effect(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="slow", seconds=0.2)
    began = time.monotonic()
    assert mira("GET", "me").status_code == 200
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    "kind", ["close", "timeout", "google_502", "truncated_json", "cut_body", "no_access_token"]
)
@pytest.mark.parametrize("after_effect", [False, True])
def test_after_effect_decides_whether_a_refresh_takes_effect(app: App, kind: str, after_effect: bool) -> None:
    app.sandbox.settings(rotate=True)
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind=kind, after_effect=after_effect, seconds=0.1)
    try:
        response = app.refresh(token)
        if kind == "truncated_json":
            with pytest.raises(json.JSONDecodeError):
                json.loads(response.text)
    except requests.RequestException:
        pass
    grant = app.sandbox.tokens()[0]
    tokens = grant["refresh_tokens"]
    assert [t["live"] for t in tokens] == ([False, True] if after_effect else [True])
    (call,) = app.sandbox.calls(grant_type="refresh_token")
    assert (call["grant"], call["fault"]) == (1, kind)
    assert call["issued_refresh_token_id"] == (tokens[1]["id"] if after_effect else None)
    assert call["issued_access_token_id"] == (grant["access_tokens"][1]["id"] if after_effect else None)


def test_changed_members_replace_those_of_the_response(app: App) -> None:
    app.sandbox.settings(rotate=True)
    token = app.connect()["refresh_token"]
    members = {"access_token": None, "expires_in": "3600"}
    app.sandbox.fault(on="refresh", kind="changed_members", members=members, after_effect=True)

    reply = app.refresh(token).json()

    assert (reply["access_token"], reply["expires_in"], reply["token_type"]) == (None, "3600", "Bearer")
    assert app.refresh(reply["refresh_token"]).status_code == 200


@pytest.mark.parametrize("after_effect", [False, True])
def test_parked_calls_wait_for_their_release(app: App, after_effect: bool) -> None:
    app.sandbox.settings(rotate=True)
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind="park", after_effect=after_effect)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.refresh, token)
        (call,) = app.sandbox.wait_for_calls(1, grant_type="refresh_token")
        app.sandbox.wait_for_held(1)
        assert (call["status"], call["finished_at"], call["fault"]) == (None, None, "park")
        assert app.sandbox.tokens()[0]["refresh_tokens"][0]["live"] == (not after_effect)
        (call,) = app.sandbox.calls(grant_type="refresh_token")
        assert bool(call["issued_refresh_token_id"]) == after_effect
        assert app.sandbox.release() == 1
        assert waiting.result(60).status_code == 200
    assert app.sandbox.calls(grant_type="refresh_token")[0]["status"] == 200
    assert app.sandbox.held() == 0


@pytest.mark.parametrize("end", ["reset", "clear_faults"])
def test_parked_calls_continue_when_faults_are_removed(mira: Visitor, end: str) -> None:
    sandbox = mira.app.sandbox
    sandbox.fault(on="me", kind="park", times=None)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(requests.get, f"{sandbox.api_url}/me", timeout=60) for _ in range(8)]
        sandbox.wait_for_held(8)
        getattr(sandbox, end)()
        assert {call.result(60).status_code for call in waiting} == {401}


@pytest.mark.parametrize(
    ("on", "met"),
    [
        ("token", {"code", "refresh"}),
        ("refresh", {"refresh"}),
        ("code", {"code"}),
        ("me", {"me"}),
        ("player", {"player"}),
        ("api", {"me", "player"}),
        ("authorize", {"authorize"}),
    ],
)
def test_fault_applies_only_to_its_target(app: App, on: str, met: set[str]) -> None:
    tokens = app.connect()
    code = app.code()
    app.sandbox.fault(on=on, kind="envoy_503", times=None)
    responses = {
        "code": app.exchange(code),
        "refresh": app.refresh(tokens["refresh_token"]),
        "me": app.call(tokens["access_token"], "GET", "me"),
        "player": app.call(tokens["access_token"], "GET", "me/player/devices"),
        "authorize": app.visit(),
    }
    assert {name for name, response in responses.items() if response.status_code == 503} == met
    app.sandbox.clear_faults()
    assert app.refresh(tokens["refresh_token"]).status_code == 200


def test_fault_counts_down_before_the_next_one_applies(mira: Visitor) -> None:
    mira.app.sandbox.fault(on="me", kind="empty_503", times=2)
    mira.app.sandbox.fault(on="me", kind="json_502")
    assert [mira("GET", "me").status_code for _ in range(4)] == [503, 503, 502, 200]


def test_fault_for_one_person_spares_the_others(app: App) -> None:
    mira, jonas = app.connect()["refresh_token"], app.connect("jonas.k")["refresh_token"]
    app.sandbox.fault(on="refresh", kind="false_invalid_grant", times=None, person="jonas.k")
    assert [app.refresh(token).status_code for token in (mira, jonas)] == [200, 400]
    assert app.sandbox.faults()[0]["met"] == 1


def rejections(app: App, token: str, calls: int) -> list[bool]:
    return [app.refresh(token).status_code == 400 for _ in range(calls)]


def test_chance_with_a_seed_hits_the_same_calls_again(app: App) -> None:
    token = app.connect()["refresh_token"]
    seen = []
    for seed in (7, 7, 8):
        app.sandbox.fault(on="refresh", kind="false_invalid_grant", times=None, chance=0.5, seed=seed)
        seen.append(rejections(app, token, 60))
        app.sandbox.clear_faults()
    assert seen[0] == seen[1] != seen[2]
    assert 15 < sum(seen[0]) < 45


def test_chance_without_a_seed_can_be_repeated(app: App) -> None:
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind="false_invalid_grant", times=None, chance=0.5)
    (fault,) = app.sandbox.faults()
    first = rejections(app, token, 40)
    app.sandbox.clear_faults()
    app.sandbox.fault(on="refresh", kind="false_invalid_grant", times=None, chance=0.5, seed=fault["seed"])
    assert rejections(app, token, 40) == first


def test_calls_spared_by_chance_do_not_count(app: App) -> None:
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind="false_invalid_grant", times=3, chance=0.3, seed=1)
    met = rejections(app, token, 60)
    assert sum(met) == 3
    assert met[:3] != [True, True, True]
    assert app.sandbox.faults()[0]["met"] == 3


@pytest.mark.parametrize(("chance", "met"), [(0, 0), (0.0, 0), (1, 20), (1.0, 20)])
def test_chance_of_zero_never_applies_and_one_always(app: App, chance: float, met: int) -> None:
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind="false_invalid_grant", times=None, chance=chance)
    assert sum(rejections(app, token, 20)) == met


def test_calls_of_others_do_not_draw_from_the_chance(app: App) -> None:
    mira, jonas = app.connect()["refresh_token"], app.connect("jonas.k")["refresh_token"]
    fault = {"on": "refresh", "kind": "false_invalid_grant", "times": None, "chance": 0.5, "seed": 3}
    app.sandbox.fault(person="mira_t_42", **fault)
    alone = rejections(app, mira, 30)
    app.sandbox.clear_faults()
    app.sandbox.fault(person="mira_t_42", **fault)
    between = []
    for _ in range(30):
        assert rejections(app, jonas, 1) == [False]
        between += rejections(app, mira, 1)
    assert between == alone


def test_fault_can_skip_calls_first(app: App) -> None:
    token = app.connect()["refresh_token"]
    app.sandbox.fault(on="refresh", kind="false_invalid_grant", after_calls=2)
    assert rejections(app, token, 4) == [False, False, True, False]


def test_outage_affects_both_hosts(mira: Visitor) -> None:
    mira.app.sandbox.settings(outage=True)
    assert mira("GET", "me").status_code == 502
    assert mira.app.visit().status_code == 502
    assert mira.app.token(grant_type="client_credentials").status_code == 502
    mira.app.sandbox.settings(outage=False)
    assert mira("GET", "me").status_code == 200
