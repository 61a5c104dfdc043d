"""The sandbox's token endpoint: grants, verbatim errors, rotation, revocation, and expiry."""

import base64

import pytest
import requests

from tests.helpers.sandbox_client import CLIENT_ID, CLIENT_SECRET, REDIRECT_URI
from tests.sandbox.conftest import PKCE, VERIFIER, App
from tests.sandbox.shapes import CODE_RESPONSE, OAUTH_ERROR, REFRESH_RESPONSE, check

DAY = 86400
BODY = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
REFRESH = {"grant_type": "refresh_token", "refresh_token": "AQ-garbage"}
CODE = {"grant_type": "authorization_code", "code": "AQ-garbage", "redirect_uri": REDIRECT_URI}
CREDENTIALS = (CLIENT_ID, CLIENT_SECRET)

ERRORS = [
    (CREDENTIALS, {}, "unsupported_grant_type", "grant_type parameter is missing"),
    (
        CREDENTIALS,
        {"grant_type": "password"},
        "unsupported_grant_type",
        "grant_type password is not supported",
    ),
    (CREDENTIALS, REFRESH, "invalid_grant", "Invalid refresh token"),
    (CREDENTIALS, {"grant_type": "refresh_token"}, "invalid_request", "refresh_token must be supplied"),
    (CREDENTIALS, CODE, "invalid_grant", "Invalid authorization code"),
    (CREDENTIALS, CODE | {"code": ""}, "invalid_request", "code must be supplied"),
    (CREDENTIALS, CODE | {"redirect_uri": ""}, "invalid_request", "redirect_uri must be supplied"),
    (("other", CLIENT_SECRET), REFRESH, "invalid_client", "Invalid client"),
    ((CLIENT_ID, "wrong"), REFRESH, "invalid_client", "Invalid client secret"),
    (None, REFRESH, "invalid_client", None),
    (None, REFRESH | {"client_id": "other"}, "invalid_client", "Invalid client"),
    (None, REFRESH | BODY | {"client_secret": "wrong"}, "invalid_client", "Invalid client secret"),
    (
        None,
        {"grant_type": "client_credentials", "client_id": CLIENT_ID},
        "invalid_client",
        "Invalid client secret",
    ),
]


def oauth_error(response: requests.Response) -> tuple[str, str | None]:
    """Check that the response is a 400 in OAuth's format, and return its error and description."""
    assert response.status_code == 400, response.text
    assert response.headers["Content-Type"] == "application/json"
    check(response.json(), OAUTH_ERROR)
    return response.json()["error"], response.json().get("error_description")


@pytest.mark.parametrize(
    ("auth", "form", "error", "description"), ERRORS, ids=[f"{r[2]} {i}" for i, r in enumerate(ERRORS)]
)
def test_error_is_a_400_with_spotifys_wording(
    app: App, auth: tuple[str, str] | None, form: dict[str, str], error: str, description: str | None
) -> None:
    assert oauth_error(app.token(auth, **form)) == (error, description)


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Basic " + base64.b64encode(b"no-colon").decode(), "Bearer x"]
)
def test_malformed_authorization_header_is_an_invalid_client(app: App, header: str) -> None:
    url = f"{app.sandbox.url}/api/token"
    response = app.http.post(url, data=REFRESH, headers={"Authorization": header}, timeout=60)
    assert oauth_error(response) == ("invalid_client", "Invalid client")


def test_json_body_is_ignored(app: App) -> None:
    url = f"{app.sandbox.url}/api/token"
    response = app.http.post(url, json=REFRESH, auth=CREDENTIALS, timeout=60)
    assert oauth_error(response) == ("unsupported_grant_type", "grant_type parameter is missing")


def test_code_is_exchanged_for_tokens(app: App) -> None:
    response = app.exchange(app.code(scope="user-top-read streaming user-read-email"))
    result = response.json()
    check(result, CODE_RESPONSE)
    assert result["expires_in"] == 3600
    assert sorted(result["scope"].split()) == ["streaming", "user-read-email", "user-top-read"]
    assert response.headers["Cache-Control"] == "no-store"


def test_secret_is_accepted_in_the_body(app: App) -> None:
    form = CODE | {"code": app.code()}
    assert app.token(None, **form, **BODY).status_code == 200


@pytest.mark.parametrize("scope", [None, ""])
def test_scope_is_omitted_if_none_was_requested(app: App, scope: str | None) -> None:
    response = app.connect(scope=scope)
    assert "scope" not in response
    assert "scope" not in app.refresh(response["refresh_token"]).json()


@pytest.mark.parametrize(("granted", "scope"), [(["streaming"], "streaming"), ([], None)])
def test_fewer_scopes_than_requested_can_be_granted(app: App, granted: list[str], scope: str | None) -> None:
    app.sandbox.settings(granted_scopes=granted)
    assert app.connect(scope="streaming user-read-email").get("scope") == scope


def test_code_works_once(app: App) -> None:
    code = app.code()
    assert app.exchange(code).status_code == 200
    assert oauth_error(app.exchange(code)) == ("invalid_grant", "Invalid authorization code")


def test_code_expires_after_ten_minutes(app: App) -> None:
    early, late = app.code(), app.code()
    app.sandbox.advance(590)
    assert app.exchange(early).status_code == 200
    app.sandbox.advance(20)
    assert oauth_error(app.exchange(late)) == ("invalid_grant", "Authorization code expired")


def test_redirect_uri_must_match_the_request(app: App) -> None:
    assert oauth_error(app.exchange(app.code(), redirect_uri=REDIRECT_URI + "/")) == (
        "invalid_grant",
        "Invalid redirect URI",
    )


@pytest.mark.parametrize(
    ("asked", "form", "error"),
    [
        (PKCE, {"code_verifier": VERIFIER}, None),
        (PKCE, {}, ("invalid_request", "code_verifier required")),
        (PKCE, {"code_verifier": VERIFIER + "x"}, ("invalid_grant", "code_verifier was incorrect")),
        (PKCE, {"code_verifier": "short"}, ("invalid_grant", "code_verifier was invalid")),
        ({}, {"code_verifier": VERIFIER}, ("invalid_grant", "code_verifier was incorrect")),
    ],
)
def test_pkce_is_enforced_with_the_secret_too(
    app: App, asked: dict[str, str], form: dict[str, str], error: tuple[str, str] | None
) -> None:
    response = app.exchange(app.code(**asked), **form)
    if error is None:
        check(response.json(), CODE_RESPONSE)
    else:
        assert oauth_error(response) == error


def test_public_client_needs_only_pkce(app: App) -> None:
    form = CODE | {"client_id": CLIENT_ID}
    without = app.token(None, **form | {"code": app.code()})
    assert oauth_error(without) == ("invalid_client", "Invalid client secret")
    response = app.token(None, **form | {"code": app.code(**PKCE), "code_verifier": VERIFIER}).json()
    check(response, CODE_RESPONSE)
    refreshed = app.token(
        None, grant_type="refresh_token", refresh_token=response["refresh_token"], client_id=CLIENT_ID
    )
    check(refreshed.json(), REFRESH_RESPONSE)


def test_confidential_grant_needs_the_secret_to_refresh(app: App) -> None:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": app.connect()["refresh_token"],
        "client_id": CLIENT_ID,
    }
    assert oauth_error(app.token(None, **form)) == ("invalid_client", "Invalid client secret")


def test_client_credentials_act_for_no_person(app: App) -> None:
    response = app.token(grant_type="client_credentials").json()
    check(response, REFRESH_RESPONSE)
    assert "refresh_token" not in response
    assert app.call(response["access_token"], "GET", "search?q=a&type=track").status_code == 200
    assert app.call(response["access_token"], "GET", "me").status_code == 401


def test_refresh_keeps_the_older_tokens(app: App) -> None:
    first = app.connect()
    for _ in range(2):
        response = app.refresh(first["refresh_token"]).json()
        check(response, REFRESH_RESPONSE)
        assert "refresh_token" not in response
        assert sorted(response["scope"].split()) == sorted(first["scope"].split())
    for token in (first["access_token"], response["access_token"]):
        assert app.call(token, "GET", "me").status_code == 200


def test_rotation_ends_the_old_refresh_token(app: App) -> None:
    app.sandbox.settings(rotate=True)
    first = app.connect()["refresh_token"]
    second = app.refresh(first).json()["refresh_token"]
    assert second != first
    assert oauth_error(app.refresh(first)) == ("invalid_grant", "Refresh token revoked")
    assert app.refresh(second).status_code == 200
    assert [token["live"] for token in app.sandbox.tokens()[0]["refresh_tokens"]] == [False, False, True]


def live_refresh_tokens(app: App) -> list[bool]:
    return [token["live"] for token in app.sandbox.tokens()[0]["refresh_tokens"]]


def test_replaced_refresh_token_works_during_the_grace_period(app: App) -> None:
    app.sandbox.settings(rotate=True, rotation_grace_s=60)
    first = app.connect()["refresh_token"]
    tokens = [app.refresh(first).json()["refresh_token"] for _ in range(3)]
    assert len({first, *tokens}) == 4
    assert live_refresh_tokens(app) == [True] * 4
    # Uses within the grace period do not extend it.
    app.sandbox.advance(50)
    tokens.append(app.refresh(first).json()["refresh_token"])
    app.sandbox.advance(15)
    assert live_refresh_tokens(app) == [False, True, True, True, True]
    assert oauth_error(app.refresh(first)) == ("invalid_grant", "Refresh token revoked")
    assert [app.refresh(token).status_code for token in tokens] == [200] * 4


def test_there_is_no_grace_period_by_default(app: App) -> None:
    assert app.sandbox.settings(rotate=True)["rotation_grace_s"] == 0
    first = app.connect()["refresh_token"]
    app.refresh(first)
    # A clock that is set back does not start a grace period.
    app.sandbox.advance(-3600)
    assert live_refresh_tokens(app) == [False, True]
    assert oauth_error(app.refresh(first)) == ("invalid_grant", "Refresh token revoked")


def test_replaced_token_still_rotates_after_rotation_is_off(app: App) -> None:
    app.sandbox.settings(rotate=True, rotation_grace_s=60)
    first = app.connect()["refresh_token"]
    second = app.refresh(first).json()["refresh_token"]
    app.sandbox.settings(rotate=False)
    assert "refresh_token" in app.refresh(first).json()
    assert "refresh_token" not in app.refresh(second).json()


def test_revoked_and_aged_tokens_have_no_grace_period(app: App) -> None:
    app.sandbox.settings(rotate=True, rotation_grace_s=365 * DAY)
    first = app.connect()["refresh_token"]
    app.refresh(first)
    app.sandbox.advance(185 * DAY)
    assert live_refresh_tokens(app) == [False, False]
    assert oauth_error(app.refresh(first)) == ("invalid_grant", "Refresh token revoked")
    app.sandbox.advance(-185 * DAY)
    assert app.refresh(first).status_code == 200
    app.sandbox.revoke("mira_t_42")
    assert oauth_error(app.refresh(first)) == ("invalid_grant", "Refresh token revoked")


def test_two_grants_of_a_person_coexist(app: App) -> None:
    first, second = app.connect(), app.connect()
    assert first["refresh_token"] != second["refresh_token"]
    assert app.refresh(first["refresh_token"]).status_code == 200
    assert app.refresh(second["refresh_token"]).status_code == 200


@pytest.mark.parametrize("wording", ["revoked", "expired"])
def test_refresh_token_ends_six_months_after_consent(app: App, wording: str) -> None:
    app.sandbox.settings(rotate=True, six_month_wording=wording)
    token = app.connect()["refresh_token"]
    for _ in range(6):
        app.sandbox.advance(30 * DAY)
        token = app.refresh(token).json()["refresh_token"]
    app.sandbox.advance(5 * DAY)
    assert oauth_error(app.refresh(token)) == ("invalid_grant", f"Refresh token {wording}")
    assert app.refresh(app.connect()["refresh_token"]).status_code == 200


def test_revocation_ends_refresh_tokens_only(app: App) -> None:
    first, again, other = app.connect(), app.connect(), app.connect("jonas.k")
    app.sandbox.revoke("mira_t_42")
    for tokens in (first, again):
        assert oauth_error(app.refresh(tokens["refresh_token"])) == ("invalid_grant", "Refresh token revoked")
        assert app.call(tokens["access_token"], "GET", "me").status_code == 200
    assert app.refresh(other["refresh_token"]).status_code == 200
    app.sandbox.advance(3601)
    assert app.call(first["access_token"], "GET", "me").status_code == 401


def test_revocation_ends_pending_codes(app: App) -> None:
    code = app.code()
    app.sandbox.revoke("mira_t_42")
    assert oauth_error(app.exchange(code)) == ("invalid_grant", "Invalid authorization code")


def test_access_token_is_valid_for_expires_in(app: App) -> None:
    app.sandbox.settings(expires_in=120)
    response = app.connect()
    assert response["expires_in"] == 120
    app.sandbox.advance(115)
    assert app.call(response["access_token"], "GET", "me").status_code == 200
    app.sandbox.advance(10)
    assert app.call(response["access_token"], "GET", "me").status_code == 401
