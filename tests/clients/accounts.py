"""People who use libraries: with an account at Backline and a token of ours, or with a token of Spotify's."""

import base64
import hashlib
from typing import Any
from urllib.parse import urlencode

import requests

from tests.clients.recording import Target
from tests.helpers.flows import PASSWORD
from tests.helpers.sandbox_client import CLIENT_ID, CLIENT_SECRET, REDIRECT_URI, SandboxClient, callback_query
from tests.helpers.servers import Server, eventually

SCOPES = (
    "app-remote-control playlist-modify-private playlist-modify-public playlist-read-collaborative "
    "playlist-read-private streaming ugc-image-upload user-follow-modify user-follow-read "
    "user-library-modify user-library-read user-modify-playback-state user-read-currently-playing "
    "user-read-email user-read-playback-position user-read-playback-state user-read-private "
    "user-read-recently-played user-top-read"
)
PERSON = "mira_t_42"
_VERIFIER = "a-code-verifier-of-at-least-43-characters-for-pkce"


class Account:
    """A person who has an account at Backline, and connects Spotify."""

    def __init__(self, server: Server, sandbox: SandboxClient) -> None:
        self._url = server.url
        self._sandbox = sandbox
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.headers["X-Requested-With"] = "tests"
        self.call("POST", "register", {"username": "ada", "email": "ada@example.com", "password": PASSWORD})

    def call(self, method: str, path: str, body: object = None) -> Any:
        response = self._http.request(method, f"{self._url}/api/{path}", json=body, timeout=60)
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def connect(self) -> None:
        """Connect Spotify, again if it is connected."""
        url = self.call("GET", "spotify/authorize?reauthorize=true")["authorize_url"]
        callback = self._sandbox.consent(url, person=PERSON)
        # Tests share the server, and the last one may have been rate limited for a second.
        eventually(lambda: self.call("GET", f"spotify/authorize?{callback.partition('?')[2]}"))

    def create_token(self, *rights: str) -> str:
        """Create a personal access token with these rights; by default, with all rights for Spotify."""
        rights = rights or ("spotify:read", "spotify:write")
        body = {"name": "A library", "rights": rights, "current_password": PASSWORD}
        token: str = self.call("POST", "user/tokens", body)["token"]
        return token

    def close(self) -> None:
        self._http.close()


def spotify_tokens(sandbox: SandboxClient, *, pkce: bool = False) -> dict[str, str]:
    """Return Spotify's tokens, with all scopes. With PKCE, the refresh token needs no client secret."""
    query = {"client_id": CLIENT_ID, "response_type": "code", "redirect_uri": REDIRECT_URI, "scope": SCOPES}
    if pkce:
        digest = hashlib.sha256(_VERIFIER.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        query |= {"code_challenge": challenge, "code_challenge_method": "S256"}
    callback = sandbox.consent(f"{sandbox.accounts_url}/authorize?{urlencode(query)}", person=PERSON)
    form = {
        "grant_type": "authorization_code",
        "code": callback_query(callback)["code"],
        "redirect_uri": REDIRECT_URI,
        **({"client_id": CLIENT_ID, "code_verifier": _VERIFIER} if pkce else {}),
    }
    with requests.Session() as http:
        http.trust_env = False
        client = None if pkce else (CLIENT_ID, CLIENT_SECRET)
        response = http.post(f"{sandbox.accounts_url}/api/token", data=form, auth=client, timeout=60)
    assert response.ok, response.text
    tokens: dict[str, str] = response.json()
    return tokens


def direct(sandbox: SandboxClient) -> Target:
    """Return the sandbox as a target, with a token of Spotify's."""
    return Target(sandbox.api_url, spotify_tokens(sandbox)["access_token"], sandbox)
