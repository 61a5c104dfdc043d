"""An app of the sandbox. It sends people to /authorize and uses their tokens."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.helpers.sandbox_client import (
    CLIENT_ID,
    CLIENT_SECRET,
    REDIRECT_URI,
    TIMEOUT_S,
    SandboxClient,
    callback_query,
)

ALL_SCOPES = (
    "playlist-modify-private playlist-modify-public playlist-read-collaborative playlist-read-private "
    "streaming user-library-modify user-library-read user-modify-playback-state "
    "user-read-currently-playing user-read-email user-read-playback-state user-read-private "
    "user-read-recently-played user-top-read"
)
VERIFIER = "a-verifier-of-at-least-forty-three-characters"


def challenge_of(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


PKCE = {"code_challenge": challenge_of(VERIFIER), "code_challenge_method": "S256"}


class App:
    """A client, confidential by default. Errors are returned, not raised."""

    def __init__(self, sandbox: SandboxClient) -> None:
        self.sandbox = sandbox
        self.http = requests.Session()
        self.http.trust_env = False

    def authorize_url(self, **changes: str | None) -> str:
        """Return the URL of the consent page. None leaves a parameter out."""
        query: dict[str, str | None] = {
            "client_id": CLIENT_ID,
            "response_type": "code",
            "redirect_uri": REDIRECT_URI,
            "state": "s t/1",
        }
        query |= changes
        return f"{self.sandbox.url}/authorize?{urlencode({k: v for k, v in query.items() if v is not None})}"

    def visit(self, **changes: str | None) -> requests.Response:
        return self.http.get(self.authorize_url(**changes), allow_redirects=False, timeout=TIMEOUT_S)

    def code(self, person: str = "mira_t_42", **changes: str | None) -> str:
        return callback_query(self.sandbox.consent(self.authorize_url(**changes), person))["code"]

    def token(
        self, auth: tuple[str, str] | None = (CLIENT_ID, CLIENT_SECRET), **form: str
    ) -> requests.Response:
        url = f"{self.sandbox.url}/api/token"
        return self.http.post(url, data=form, auth=auth, allow_redirects=False, timeout=TIMEOUT_S)

    def exchange(self, code: str, **form: str) -> requests.Response:
        sent = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
        return self.token(**(sent | form))  # type: ignore[arg-type]

    def refresh(self, refresh_token: str) -> requests.Response:
        return self.token(grant_type="refresh_token", refresh_token=refresh_token)

    def connect(self, person: str = "mira_t_42", scope: str | None = ALL_SCOPES) -> dict[str, Any]:
        """Get a person's tokens: consent, then exchange."""
        response = self.exchange(self.code(person, scope=scope))
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def call(self, token: str, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.sandbox.api_url}/{path}"
        options = {"timeout": TIMEOUT_S, "allow_redirects": False, **options}
        return self.http.request(method, url, headers=headers, **options)


class Visitor:
    """Calls the Web API on behalf of a person."""

    def __init__(self, app: App, person: str, scope: str = ALL_SCOPES) -> None:
        self.app = app
        self.url = f"{app.sandbox.api_url}/"
        self.token = app.connect(person, scope)["access_token"]

    def __call__(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.app.call(self.token, method, path, **options)

    def get(self, path: str) -> Any:
        response = self("GET", path)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
def app(sandbox: SandboxClient) -> Iterator[App]:
    client = App(sandbox)
    yield client
    client.http.close()


@pytest.fixture
def mira(app: App) -> Visitor:
    """Premium, listening in the kitchen."""
    return Visitor(app, "mira_t_42")


@pytest.fixture
def jonas(app: App) -> Visitor:
    """Without Premium and without an active device."""
    return Visitor(app, "jonas.k")


@pytest.fixture
def aiko(app: App) -> Visitor:
    """Premium, with a device that is not active."""
    return Visitor(app, "aiko-87")
