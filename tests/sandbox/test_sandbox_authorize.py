"""The sandbox's consent page and its redirects to the app."""

import html
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pytest
import requests

from tests.helpers.sandbox_client import (
    CLIENT_ID,
    REDIRECT_URI,
    SandboxClient,
    callback_query,
    running_sandbox,
)
from tests.sandbox.conftest import PKCE, App

ERRORS = [
    ({"client_id": "0" * 32}, "INVALID_CLIENT: Invalid client"),
    ({"client_id": None}, "Missing required parameter: client_id"),
    ({"redirect_uri": None}, "Missing required parameter: redirect_uri"),
    ({"redirect_uri": REDIRECT_URI + "/"}, "INVALID_CLIENT: Invalid redirect URI"),
    ({"redirect_uri": REDIRECT_URI.upper()}, "INVALID_CLIENT: Invalid redirect URI"),
    ({"redirect_uri": REDIRECT_URI + "?a=b"}, "INVALID_CLIENT: Invalid redirect URI"),
    ({"redirect_uri": "https://evil.example/"}, "INVALID_CLIENT: Invalid redirect URI"),
    ({"redirect_uri": "http://127.0.0.1:x/api/spotify/authorize"}, "INVALID_CLIENT: Invalid redirect URI"),
    ({"redirect_uri": "http://[::1"}, "INVALID_CLIENT: Invalid redirect URI"),
    ({"redirect_uri": "http://evil.example/"}, "INVALID_CLIENT: Insecure redirect URI"),
    ({"redirect_uri": "http://localhost:5000/x"}, "INVALID_CLIENT: Insecure redirect URI"),
    ({"redirect_uri": "https://localhost/x"}, "INVALID_CLIENT: Insecure redirect URI"),
    ({"redirect_uri": "http://127.0.0.1.evil.example/"}, "INVALID_CLIENT: Insecure redirect URI"),
    ({"response_type": None}, "Missing required parameter: response_type"),
    ({"response_type": "token"}, "response_type must be code"),
    ({"scope": "user-read-email user-read-birthdate"}, "Illegal scope"),
    ({"scope": "<script>alert(1)</script>"}, "Illegal scope"),
    ({"code_challenge_method": "S256"}, "Missing required parameter: code_challenge"),
    ({"code_challenge": PKCE["code_challenge"]}, "code_challenge_method must be S256"),
    (
        {"code_challenge": PKCE["code_challenge"], "code_challenge_method": "plain"},
        "code_challenge_method must be S256",
    ),
    ({"code_challenge": "short", "code_challenge_method": "S256"}, "Invalid code_challenge"),
    (
        {"code_challenge": PKCE["code_challenge"] + "=", "code_challenge_method": "S256"},
        "Invalid code_challenge",
    ),
]


@pytest.mark.parametrize(("changes", "text"), ERRORS, ids=[f"{t} {i}" for i, (_, t) in enumerate(ERRORS)])
def test_invalid_request_shows_a_page_and_never_reaches_the_app(
    app: App, changes: dict[str, str | None], text: str
) -> None:
    page = app.visit(**changes)
    assert (page.status_code, page.headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert f"<h1>{text}</h1>" in page.text
    assert "Location" not in page.headers
    assert "alert(1)" not in page.text


def test_repeated_parameter_is_rejected(app: App) -> None:
    page = app.http.get(app.authorize_url() + "&state=other", timeout=60)
    assert page.status_code == 400
    assert "Repeated parameter" in page.text


@pytest.fixture(scope="module")
def many_uris() -> list[str]:
    return [
        "http://127.0.0.1/cb",
        "http://[::1]/cb",
        "http://127.0.0.1:5000/fixed",
        "myapp://done",
        "https://a.example/cb?x=1",
    ]


@pytest.fixture(scope="module")
def other_sandbox(many_uris: list[str]) -> Iterator[SandboxClient]:
    """A sandbox with all kinds of redirect URIs."""
    with running_sandbox(many_uris) as client:
        yield client


@pytest.mark.parametrize(
    ("uri", "fits"),
    [
        ("http://127.0.0.1/cb", True),
        ("http://127.0.0.1:49152/cb", True),
        ("http://127.0.0.1:49152/cb/", False),
        ("http://127.0.0.1:49152/CB", False),
        ("http://127.0.0.1:49152/cb?x=1", False),
        ("http://user@127.0.0.1:1/cb", False),
        ("http://127.0.0.1:/cb", False),
        ("http://127.0.0.2:49152/cb", False),
        ("http://[::1]/cb", True),
        ("http://[::1]:8080/cb", True),
        ("http://127.0.0.1:5000/fixed", True),
        ("http://127.0.0.1:5001/fixed", False),
        ("myapp://done", True),
        ("myapp://done/", False),
        ("https://a.example/cb?x=1", True),
        ("https://a.example:443/cb?x=1", False),
    ],
)
def test_only_loopback_literals_match_any_port(other_sandbox: SandboxClient, uri: str, fits: bool) -> None:
    page = App(other_sandbox).visit(redirect_uri=uri)
    assert page.status_code == (200 if fits else 400), page.text


def test_response_is_added_to_the_redirect_uris_query(other_sandbox: SandboxClient) -> None:
    url = App(other_sandbox).authorize_url(redirect_uri="https://a.example/cb?x=1")
    callback = other_sandbox.consent(url)
    assert callback.startswith("https://a.example/cb?x=1&code=AQ")


def test_consent_page_lists_people_and_scopes(app: App) -> None:
    page = app.visit(scope="streaming user-read-email", **PKCE)
    assert page.status_code == 200
    text = html.unescape(page.text)
    for expected in [
        "not the real Spotify",
        "Mira T.",
        "aiko-87",
        "See your email address",
        "Agree",
        "Cancel",
    ]:
        assert expected in text
    assert not re.search(r"(?:src|href)=.https?://", page.text), "the page loads from another host"
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"


def test_consent_page_escapes_the_query(app: App) -> None:
    page = app.visit(state='"><script>alert(1)</script>')
    assert page.status_code == 200
    assert "<script" not in page.text


@pytest.mark.parametrize("state", ["plain", "with space & more=1", "ünï💥", "", None])
@pytest.mark.parametrize("decision", ["agree", "cancel"])
def test_state_is_returned_unchanged(app: App, state: str | None, decision: str) -> None:
    callback = app.sandbox.consent(app.authorize_url(state=state), decision=decision)
    query = urlsplit(callback).query
    tokens = dict(pair.split("=", 1) for pair in query.split("&"))
    assert unquote(tokens["state"].replace("+", " ")) == state if state is not None else "state" not in tokens
    assert ("code" in tokens) == (decision == "agree")
    assert tokens.get("error") == (None if decision == "agree" else "access_denied")


def test_returning_person_is_redirected_at_once(app: App) -> None:
    with requests.Session() as browser:
        app.sandbox.consent(app.authorize_url(scope="streaming user-read-email"), "jonas.k", browser=browser)

        def visit(**changes: str | None) -> int:
            return browser.get(app.authorize_url(**changes), allow_redirects=False, timeout=60).status_code

        assert visit(scope="user-read-email") == 303
        assert visit(scope=None) == 303
        assert visit(scope="user-read-email", show_dialog="true") == 200
        assert visit(scope="user-read-email user-top-read") == 200
        app.sandbox.revoke("jonas.k")
        assert visit(scope="user-read-email") == 200


def test_another_person_can_sign_in(app: App) -> None:
    with requests.Session() as browser:
        app.sandbox.consent(app.authorize_url(), browser=browser)
        page = browser.get(app.authorize_url(show_dialog="true"), timeout=60)
        assert "Signed in as mira_t_42" in page.text
        assert "jonas.k" not in page.text
        link = html.unescape(re.findall(r'href="(/logout\?[^"]+)"', page.text)[0])
        again = browser.get(app.sandbox.url + link, timeout=60)
        assert again.history[0].status_code == 303
        assert "Jonas K." in again.text


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example/authorize?", "/\\evil.example"])
def test_sign_out_does_not_redirect_elsewhere(app: App, target: str) -> None:
    response = app.http.get(
        f"{app.sandbox.url}/logout", params={"continue": target}, allow_redirects=False, timeout=60
    )
    assert response.headers["Location"] == "/"


def test_consent_form_is_validated_like_the_page(app: App) -> None:
    url = f"{app.sandbox.url}/authorize/consent"
    query = f"client_id={CLIENT_ID}&response_type=code&redirect_uri=https://evil.example/"
    wrong = app.http.post(url, data={"query": query, "person": "mira_t_42", "decision": "agree"}, timeout=60)
    query = app.authorize_url().partition("?")[2]
    without_person = app.http.post(url, data={"query": query, "person": "x", "decision": "agree"}, timeout=60)
    assert (wrong.status_code, without_person.status_code) == (400, 400)


def test_auto_consent_shows_no_page(app: App) -> None:
    app.sandbox.settings(auto_consent="aiko-87")
    callback = app.visit(scope="user-read-email").headers["Location"]
    assert app.exchange(callback_query(callback)["code"]).status_code == 200
    assert app.sandbox.tokens()[0]["person"] == "aiko-87"
