"""The sandbox's control API: settings, clock, people, journal, access; and the page at `/`."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from sandbox import journal
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import eventually
from tests.sandbox.conftest import PKCE, VERIFIER, App, Visitor

UNKNOWN = [
    ("PATCH", "settings", {"rotat": True}, "unknown setting: rotat"),
    ("PATCH", "settings", {"rotate": 1}, "rotate must be true or false"),
    ("PATCH", "settings", {"mode": "2027"}, "mode must be one of dev2026, transition, legacy"),
    ("PATCH", "settings", {"expires_in": 0}, "expires_in must be"),
    ("PATCH", "settings", {"expires_in": True}, "expires_in must be"),
    ("PATCH", "settings", {"latency_ms": {"me": 1}}, "latency_ms must be"),
    ("PATCH", "settings", {"granted_scopes": ["x"]}, "granted_scopes must be"),
    ("PATCH", "settings", {"auto_consent": "nobody"}, "auto_consent must be null or one of mira_t_42"),
    ("PATCH", "settings", [], "the body must be a JSON object"),
    ("POST", "clock", {"back": 1}, "unknown member: back"),
    ("POST", "clock", {}, "exactly one of"),
    ("POST", "clock", {"advance": "1"}, "advance must be a number"),
    ("POST", "faults", {"on": "api"}, "on and kind are required"),
    ("POST", "faults", {"on": "moon", "kind": "close"}, "on must be one of token, refresh"),
    ("POST", "faults", {"on": "api", "kind": "melt"}, "kind must be one of"),
    ("POST", "faults", {"on": "api", "kind": "close", "time": 1}, "unknown member: time"),
    ("POST", "faults", {"on": "api", "kind": "close", "times": 0}, "times must be"),
    ("POST", "faults", {"on": "api", "kind": "close", "seconds": 1000}, "seconds must be"),
    ("POST", "people/mira_t_42/rename", {"id": "jonas.k"}, "id must be new"),
    ("PATCH", "settings", {"auto_consent": []}, "auto_consent must be null or one of mira_t_42"),
    ("PATCH", "settings", {"rotation_grace_s": -1}, "rotation_grace_s must be a whole number"),
    ("PATCH", "settings", {"rotation_grace_s": 1.5}, "rotation_grace_s must be a whole number"),
    ("POST", "faults", {"on": "api", "kind": "close", "chance": 1.1}, "chance must be a number from 0 to 1"),
    ("POST", "faults", {"on": "api", "kind": "close", "chance": True}, "chance must be a number from 0 to 1"),
    ("POST", "faults", {"on": "api", "kind": "close", "seed": "x"}, "seed must be null or a whole number"),
    ("POST", "faults", {"on": "api", "kind": "close", "after_calls": -1}, "after_calls must be"),
    ("POST", "seed", {}, "count must be 1 to 20000"),
    ("POST", "seed", {"count": 0}, "count must be 1 to 20000"),
    ("POST", "seed", {"count": 20001}, "count must be 1 to 20000"),
    ("POST", "seed", {"count": True}, "count must be 1 to 20000"),
    ("POST", "seed", {"count": 1, "who": "x"}, "unknown member: who"),
    ("POST", "seed", {"count": 1, "scopes": "streaming"}, "scopes must be a list of known scopes"),
    ("POST", "seed", {"count": 1, "scopes": ["x"]}, "scopes must be a list of known scopes"),
    ("POST", "seed", {"count": 1, "scopes": [{}]}, "scopes must be a list of known scopes"),
    ("POST", "seed", {"count": 1, "authorized_at": "yesterday"}, "authorized_at must be a time"),
    ("POST", "seed", {"count": 1, "authorized_at": "2026-01-01T00:00:00"}, "authorized_at must be a time"),
    ("POST", "seed", {"count": 1, "authorized_at": "2026-02-30T00:00:00Z"}, "authorized_at must be a time"),
    ("POST", "seed", {"count": 1, "authorized_at": 17}, "authorized_at must be a time"),
    ("POST", "seed", {"count": 1, "authorized_at": "2199-01-01T00:00:00Z"}, "authorized_at must not be in"),
    ("GET", "journal?after=-1", None, "after must be the number of a call"),
    ("GET", "journal?after=x", None, "after must be the number of a call"),
    ("GET", "journal?since=1", None, "unknown parameter: since"),
    ("GET", "journal?after=1&after=2", None, "after is given twice"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "message"), UNKNOWN, ids=[f"{u[3]} {i}" for i, u in enumerate(UNKNOWN)]
)
def test_unknown_members_are_rejected(
    sandbox: SandboxClient, method: str, path: str, body: object, message: str
) -> None:
    response = requests.request(method, f"{sandbox.url}/_sandbox/{path}", json=body, timeout=60)
    assert response.status_code == 422
    assert response.json()["message"].startswith(message)
    assert sandbox.faults() == []
    assert len(sandbox.people()) == 4


@pytest.mark.parametrize("body", ["", "{", "[" * 100_000])
def test_invalid_json_is_rejected(sandbox: SandboxClient, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = requests.patch(f"{sandbox.url}/_sandbox/settings", data=body, headers=headers, timeout=60)
    assert (response.status_code, response.json()["message"]) == (422, "the body must be JSON")


def test_settings_change_together_or_not_at_all(sandbox: SandboxClient) -> None:
    with pytest.raises(AssertionError):
        sandbox.settings(rotate=True, mode="x")
    assert sandbox.settings()["rotate"] is False
    changed = sandbox.settings(rotate=True, latency_ms={"api": 5})
    assert (changed["rotate"], changed["latency_ms"]) == (True, {"token": 0, "api": 5})


def test_unknown_people_and_paths_are_404(sandbox: SandboxClient) -> None:
    for path in ("people/nobody/revoke", "nothing"):
        response = requests.post(f"{sandbox.url}/_sandbox/{path}", timeout=60)
        assert (response.status_code, response.headers["Content-Type"]) == (404, "application/json")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "sandbox.evil.example:5001"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_sites_cannot_control_the_sandbox(sandbox: SandboxClient, headers: dict[str, str]) -> None:
    for path in ("reset", "seed"):
        url = f"{sandbox.url}/_sandbox/{path}"
        assert requests.post(url, json={"count": 1}, headers=headers, timeout=60).status_code == 403
    assert len(sandbox.people()) == 4


def test_clock_moves_by_steps_and_to_an_offset(sandbox: SandboxClient) -> None:
    sandbox.advance(60)
    sandbox.advance(60)
    assert sandbox.control("GET", "clock")["offset"] == 120
    moved = sandbox.control("POST", "clock", {"offset": 86400})
    assert moved["offset"] == 86400
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", moved["now"])


def test_reset_restores_the_initial_state(app: App) -> None:
    tokens = app.connect()
    app.sandbox.settings(rotate=True)
    app.sandbox.advance(60)
    app.sandbox.rename("mira_t_42", "mira")
    app.sandbox.fault(on="api", kind="close", times=None)
    app.sandbox.reset()
    assert app.sandbox.tokens() == []
    assert app.sandbox.calls() == []
    assert app.sandbox.settings()["rotate"] is False
    assert app.sandbox.people()[0]["id"] == "mira_t_42"
    assert app.refresh(tokens["refresh_token"]).json()["error_description"] == "Invalid refresh token"
    assert app.sandbox.control("GET", "clock")["offset"] == 0


def test_renamed_person_keeps_the_account_id(mira: Visitor) -> None:
    before = mira.get("me")
    mira.app.sandbox.rename("mira_t_42", "mira.t.2026")
    after = mira.get("me")
    assert (before["id"], after["id"]) == ("mira_t_42", "mira.t.2026")
    assert before["account_id"] == after["account_id"]
    assert mira.app.sandbox.tokens()[0]["person"] == "mira.t.2026"


def test_all_access_tokens_can_be_expired_at_once(mira: Visitor) -> None:
    assert mira.app.sandbox.expire_access_tokens() == 1
    assert mira("GET", "me").status_code == 401
    assert mira.app.sandbox.expire_access_tokens() == 0


def test_journal_has_every_call_and_no_secret(app: App) -> None:
    callback = app.sandbox.consent(app.authorize_url(state="a-secret-state", **PKCE))
    code = callback_query(callback)["code"]
    tokens = app.exchange(code, code_verifier=VERIFIER).json()
    app.refresh(tokens["refresh_token"])
    app.call(tokens["access_token"], "GET", "me/playlists?limit=5&access_token=leaked")
    calls = app.sandbox.calls()
    assert [(c["n"], c["method"], c["path"], c["status"]) for c in calls] == [
        (1, "GET", "/authorize", 200),
        (2, "POST", "/authorize/consent", 303),
        (3, "POST", "/api/token", 200),
        (4, "POST", "/api/token", 200),
        (5, "GET", "/v1/me/playlists", 403),
    ]
    grant = app.sandbox.tokens()[0]
    assert [c["grant_type"] for c in calls[2:]] == ["authorization_code", "refresh_token", None]
    assert [c["client_auth"] for c in calls[2:]] == ["basic", "basic", None]
    assert calls[3]["refresh_token_id"] == grant["refresh_tokens"][0]["id"]
    assert calls[4]["access_token_id"] == grant["access_tokens"][0]["id"]
    assert {c["person"] for c in calls[1:]} == {"mira_t_42"}
    assert calls[4]["query"].startswith("limit=5&access_token=")
    shown = app.sandbox.control("GET", "journal").__repr__() + repr(app.sandbox.tokens())
    for secret in (
        code,
        tokens["access_token"],
        tokens["refresh_token"],
        "a-secret-state",
        VERIFIER,
        "leaked",
    ):
        assert secret not in shown
    app.sandbox.clear_calls()
    assert app.sandbox.calls() == []


def test_journal_names_the_tokens_that_were_issued(app: App) -> None:
    first = app.connect()["refresh_token"]
    app.refresh(first)
    app.sandbox.settings(rotate=True)
    app.refresh(first)
    app.refresh(first)
    app.refresh("AQ-garbage")
    app.token(grant_type="client_credentials")
    one, of_the_app = app.sandbox.tokens()
    refresh_tokens, access_tokens = (
        [t["id"] for t in one[f"{kind}_tokens"]] for kind in ("refresh", "access")
    )
    issued = [
        (call["grant"], call["issued_refresh_token_id"], call["issued_access_token_id"])
        for call in app.sandbox.calls("/api/token")
    ]
    assert issued == [
        (1, refresh_tokens[0], access_tokens[0]),
        (1, None, access_tokens[1]),
        (1, refresh_tokens[1], access_tokens[2]),
        (1, None, None),
        (None, None, None),
        (2, None, of_the_app["access_tokens"][0]["id"]),
    ]


def test_journal_can_be_read_from_a_number_on(app: App) -> None:
    app.connect()
    app.token(grant_type="client_credentials")
    sandbox = app.sandbox
    assert [call["n"] for call in sandbox.calls()] == [1, 2, 3, 4]
    assert [call["n"] for call in sandbox.calls(after=2)] == [3, 4]
    assert sandbox.calls(after=4) == sandbox.calls(after=400) == []
    assert [call["n"] for call in sandbox.calls("/api/token")] == [3, 4]
    assert [call["n"] for call in sandbox.calls(grant_type="client_credentials")] == [4]
    assert [call["n"] for call in sandbox.calls("/api/token", "authorization_code", after=2)] == [3]
    assert sandbox.calls("/api/token", "authorization_code", after=3) == []
    assert sandbox.control("GET", "journal")["calls"] == sandbox.calls()


def test_journal_updates_a_call_that_was_in_progress(app: App) -> None:
    token = app.connect()["refresh_token"]
    app.sandbox.clear_calls()
    app.sandbox.fault(on="refresh", kind="park")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.refresh, token)
        (call,) = app.sandbox.wait_for_calls(1, grant_type="refresh_token", after=0)
        app.sandbox.wait_for_held(1)
        app.sandbox.release()
        waiting.result(60)
    assert (call["n"], call["finished_at"]) == (1, None)
    assert app.sandbox.calls(after=call["n"]) == []
    assert app.sandbox.calls(after=call["n"] - 1)[0]["finished_at"]


def test_journal_knows_which_calls_it_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 3)
    stored = journal.Journal()
    assert stored.forgotten() == 0
    for n in range(1, 6):
        stored.open(journal.Call(path=f"/{n}"), "now")
    assert stored.forgotten() == 2
    assert [call.path for call in stored.calls()] == ["/3", "/4", "/5"]
    assert [call.path for call in stored.calls(after=4)] == ["/5"]
    assert [call.path for call in stored.newest(2)] == ["/5", "/4"]
    stored.clear()
    assert (stored.forgotten(), stored.calls()) == (0, [])


def test_journal_client_reports_dropped_calls(
    sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "control", lambda *_: {"calls": [], "forgotten": 5})
    assert sandbox.calls(after=5) == []
    with pytest.raises(AssertionError, match="calls up to 5 were forgotten"):
        sandbox.calls(after=4)


def test_journal_shows_cookies_sent_to_the_token_endpoint(app: App) -> None:
    app.connect()
    app.token(grant_type="client_credentials")
    first, second = app.sandbox.calls("/api/token")
    assert ("cookie" in first["headers"], "cookie" in second["headers"]) == (False, True)


def test_fifty_simultaneous_calls_succeed(mira: Visitor) -> None:
    url, headers = f"{mira.app.sandbox.api_url}/me", {"Authorization": f"Bearer {mira.token}"}
    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(lambda _: requests.get(url, headers=headers, timeout=60), range(200)))
    assert {response.status_code for response in responses} == {200}
    assert len(mira.app.sandbox.calls("/v1/me")) == 200


def test_one_of_several_parallel_rotating_refreshes_succeeds(app: App) -> None:
    app.sandbox.settings(rotate=True)
    token = app.connect()["refresh_token"]
    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(lambda _: App(app.sandbox).refresh(token).status_code, range(10)))
    assert sorted(statuses) == [200] + [400] * 9


def test_latency_is_added_to_the_host_it_is_set_for(app: App) -> None:
    app.sandbox.settings(latency_ms={"token": 300})
    slow = app.token(grant_type="client_credentials")
    token = slow.json()["access_token"]
    assert slow.elapsed.total_seconds() >= 0.3
    eventually(lambda: app.call(token, "GET", "search?q=a&type=track").elapsed.total_seconds() < 0.3)


def test_index_page_shows_people_and_loads_nothing_foreign(sandbox: SandboxClient) -> None:
    page = requests.get(sandbox.url, timeout=60)
    assert page.status_code == 200
    for expected in ("mira_t_42", "Revoke", "Rotate refresh tokens", "Outage", "/_sandbox/journal"):
        assert expected in page.text
    assert not re.search(r"(?:src|href)=.https?://", page.text)
    source = re.findall(r'src="([^"]+)"', page.text)[0]
    image = requests.get(sandbox.url + source, timeout=60)
    assert (image.status_code, image.headers["Content-Type"]) == (200, "image/svg+xml")
