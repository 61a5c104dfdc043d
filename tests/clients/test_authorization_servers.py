"""Backline against authorization servers of others, which detect that a refresh token is used twice."""

import itertools
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit

import pytest
import requests

from tests.conftest import cannot_run
from tests.helpers.node import TEST_PACKAGES, install
from tests.helpers.servers import (
    ROOT,
    Server,
    Unavailable,
    free_port,
    process_environment,
    running_program,
)
from tests.helpers.upstream import Upstream

CLIENT_ID, CLIENT_SECRET = "backline", "100%secret:+/="
REDIRECT_URI = "http://127.0.0.1:5000/api/spotify/authorize"
SCOPES = "openid streaming user-read-email user-read-private"
LIFETIME_SECONDS = 1
CONNECTIONS, REFRESHES = 20, 120

# Passes of the scheduler follow each other without a pause.
SCHEDULER = (
    "import flask.cli; from app.spotify.tokens import scheduler; "
    "scheduler.TICK_SECONDS = 0.2; flask.cli.main()"
)
COMMANDS = {
    "oidc-provider": ["node", str(TEST_PACKAGES / "authorization-server.js")],
    "authlib": [sys.executable, str(ROOT / "tests/clients/authlib_server.py")],
}


@dataclass(frozen=True)
class AuthorizationServer:
    """A running server."""

    url: str

    @property
    def counts(self) -> dict[str, int]:
        """How many refreshes it has made, and how many it has rejected."""
        counts: dict[str, int] = requests.get(f"{self.url}/_counts", timeout=60).json()
        return counts

    def consent(self, authorize_url: str) -> dict[str, str]:
        """Consent as a new person. Returns the parameters of the callback."""
        with requests.Session() as browser:
            location = authorize_url
            while not location.startswith(REDIRECT_URI):
                response = browser.get(location, allow_redirects=False, timeout=60)
                assert response.is_redirect, response.text
                location = urljoin(location, response.headers["Location"])
        return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}

    def request_tokens(self, **form: str) -> requests.Response:
        """Request tokens as the client."""
        quoted = (quote(CLIENT_ID, safe=""), quote(CLIENT_SECRET, safe=""))
        return requests.post(f"{self.url}/api/token", form, auth=quoted, timeout=60)


@pytest.fixture(params=COMMANDS)
def accounts(request: pytest.FixtureRequest) -> Iterator[AuthorizationServer]:
    if request.param == "oidc-provider":
        try:
            install(TEST_PACKAGES)
        except Unavailable as error:
            cannot_run(error)
    port = free_port()
    running = AuthorizationServer(f"http://127.0.0.1:{port}")
    settings = {
        "PORT": str(port),
        "CLIENT_ID": CLIENT_ID,
        "CLIENT_SECRET": CLIENT_SECRET,
        "REDIRECT_URI": REDIRECT_URI,
        "SCOPES": SCOPES,
        "LIFETIME": str(LIFETIME_SECONDS),
        "AUTHLIB_INSECURE_TRANSPORT": "1",
    }
    command = COMMANDS[request.param]
    with running_program(command, lambda: running.counts, env=process_environment(settings)):
        yield running


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_no_refresh_token_is_used_twice(
    accounts: AuthorizationServer,
    server: Callable[..., AbstractContextManager[Server]],
    env: dict[str, str],
    upstream: Upstream,
) -> None:
    """Twenty people connect. Then two workers and two schedulers refresh all tokens at the same time."""
    settings = {
        "SPOTIFY_ACCOUNTS_URL": accounts.url,
        "SPOTIFY_CLIENT_ID": CLIENT_ID,
        "SPOTIFY_CLIENT_SECRET": CLIENT_SECRET,
        "SPOTIFY_REDIRECT_URI": REDIRECT_URI,
        "SPOTIFY_SCOPES": SCOPES,
        "REFRESH_RATE": "1000",
    }
    scheduler = [sys.executable, "-c", SCHEDULER, "--app", "wsgi:app", "scheduler"]
    with ExitStack() as stack:
        api = stack.enter_context(server(workers=2, threads=8, **settings))
        with ThreadPoolExecutor(4) as pool:
            cookies = list(pool.map(lambda _: connect(api, accounts), range(CONNECTIONS)))
        for _ in range(2):
            environment = process_environment({**env, **settings})
            stack.enter_context(running_program(scheduler, lambda: True, env=environment))
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(read_until_refreshed, api, accounts, cookies) for _ in range(4)]
            for one in done:
                one.result()
        states = [read(api, "/api/spotify", cookie).json()["status"] for cookie in cookies]
    counts = accounts.counts
    assert counts["refreshes"] >= REFRESHES
    assert (counts["reused"], counts["rejected"]) == (0, 0)
    assert states == ["connected"] * CONNECTIONS
    require_detection(accounts)


def connect(api: Server, accounts: AuthorizationServer) -> str:
    """Connect a visitor. Returns the cookie."""
    with requests.Session() as visitor:
        visitor.headers.update({"X-Requested-With": "test", "Accept": "application/json"})
        started = visitor.get(f"{api.url}/api/spotify/authorize", timeout=60).json()
        callback = accounts.consent(started["authorize_url"])
        response = visitor.get(f"{api.url}/api/spotify/authorize", params=callback, timeout=60)
        assert response.json()["status"] == "connected", response.text
        [(name, value)] = visitor.cookies.get_dict().items()
        return f"{name}={value}"


def read(api: Server, path: str, cookie: str, http: requests.Session | None = None) -> requests.Response:
    headers = {"Cookie": cookie, "X-Requested-With": "test"}
    return (http or requests).get(f"{api.url}{path}", headers=headers, timeout=60)


def read_until_refreshed(api: Server, accounts: AuthorizationServer, cookies: list[str]) -> None:
    """Use each connection in turn, as other threads do. Returns when all refreshes were made."""
    with requests.Session() as http:
        for number in itertools.count():
            if accounts.counts["refreshes"] >= REFRESHES:
                return
            for cookie in cookies:
                path = ("/api/spotify/token", "/api/spotify/v1/me/player")[number % 2]
                response = read(api, path, cookie, http)
                # On a busy machine, the server may not respond in time.
                assert response.status_code in (200, 503), response.text


def require_detection(accounts: AuthorizationServer) -> None:
    """Require that the server detects a refresh token that is used twice, and ends the grant."""
    verifier = "v" * 43
    query = {
        "client_id": CLIENT_ID,
        "response_type": "code",
        "redirect_uri": REDIRECT_URI,
        "scope": SCOPES,
        "state": "state",
        "code_challenge_method": "S256",
        "code_challenge": urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode(),
    }
    code = accounts.consent(f"{accounts.url}/authorize?{urlencode(query)}")["code"]
    exchange = {"code": code, "redirect_uri": REDIRECT_URI, "code_verifier": verifier}
    first = accounts.request_tokens(grant_type="authorization_code", **exchange).json()["refresh_token"]
    second = accounts.request_tokens(grant_type="refresh_token", refresh_token=first).json()["refresh_token"]
    for token in (first, second):
        response = accounts.request_tokens(grant_type="refresh_token", refresh_token=token)
        assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert (accounts.counts["reused"], accounts.counts["rejected"]) == (1, 2)
