"""A complete Backline to measure, with people in it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from benchmarks.processes import Target, Tree, tree_of
from tests.conftest import ANY_PORT_REDIRECT_URI, SETTINGS
from tests.helpers.flows import PASSWORD
from tests.helpers.sandbox_client import SandboxClient, callback_query, running_sandbox
from tests.helpers.servers import ROOT, Server, migrate, running_mariadb, running_redis, running_server

CLIENT_TIMEOUT = 30.0
ALTERNATIVES_REDIRECT_URI = "http://127.0.0.1/api/auth/callback/spotify"
HEADERS = {"X-Requested-With": "benchmark", "Accept": "application/json"}


@dataclass(frozen=True)
class Servers:
    """What a server and its alternatives use."""

    database_url: str
    redis_url: str
    sandbox: SandboxClient
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Deployment:
    """A running server, and the servers that it uses."""

    server: Server
    servers: Servers

    @property
    def port(self) -> int:
        """The port of the server."""
        return self.server.port

    @property
    def sandbox(self) -> SandboxClient:
        """The sandbox Spotify."""
        return self.servers.sandbox

    @property
    def tree(self) -> Tree:
        """The processes of the server."""
        return tree_of(self.server)

    def connect(self, person: str = "mira_t_42", username: str = "") -> str:
        """Connect Spotify, as a visitor or a new user. Return the Cookie header of the session."""
        with requests.Session() as http:
            http.trust_env = False
            http.headers.update(HEADERS)
            if username:
                account = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
                url = f"{self.server.url}/api/register"
                http.post(url, json=account, timeout=CLIENT_TIMEOUT).raise_for_status()
            authorize = f"{self.server.url}/api/spotify/authorize"
            url = http.get(authorize, timeout=CLIENT_TIMEOUT).json()["authorize_url"]
            query = callback_query(self.sandbox.consent(url, person=person))
            http.get(authorize, params=query, timeout=CLIENT_TIMEOUT).raise_for_status()
            return f"backline_session={http.cookies['backline_session']}"

    def get(self, path: str, cookie: str) -> requests.Response:
        """Send one request.

        Raises:
            requests.HTTPError: The response is an error.
        """
        with requests.Session() as http:
            http.trust_env = False
            headers = {**HEADERS, "Cookie": cookie}
            response = http.get(f"{self.server.url}{path}", headers=headers, timeout=CLIENT_TIMEOUT)
            response.raise_for_status()
            return response

    def target(
        self, path: str, cookie: str, expected: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> Target:
        """Return a route to measure, with members that its JSON must have, such as `user.username`."""
        sent = {**HEADERS, "Cookie": cookie} if cookie else HEADERS
        return Target(path, f"{self.server.url}{path}", self.tree, sent, expected, headers or {})


@contextmanager
def running_servers(root: Path = ROOT) -> Iterator[Servers]:
    """Start a database, Redis, and a sandbox, and stop them at the end of the block."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(running_sandbox([ANY_PORT_REDIRECT_URI, ALTERNATIVES_REDIRECT_URI]))
        database_url = stack.enter_context(running_mariadb())
        redis_url = stack.enter_context(running_redis())
        settings = {
            **SETTINGS,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SPOTIFY_ACCOUNTS_URL": sandbox.accounts_url,
            "SPOTIFY_API_URL": sandbox.api_url,
            "LOG_LEVEL": "INFO",  # the default: one line for each request
        }
        migrate(settings | {"SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI}, root)
        del settings["SPOTIFY_REDIRECT_URI"]  # the server's own default
        yield Servers(database_url, redis_url, sandbox, settings)


@contextmanager
def running_backline(
    servers: Servers,
    settings: Mapping[str, str] | None = None,
    *,
    workers: int = 2,
    root: Path = ROOT,
) -> Iterator[Deployment]:
    """Run the app with deploy/gunicorn.conf.py. `root` is its directory."""
    merged = {**servers.settings, **(settings or {})}
    with running_server(merged, workers=workers, threads=8, root=root) as server:
        yield Deployment(server, servers)
