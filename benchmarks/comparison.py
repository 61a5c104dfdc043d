"""Backline next to other software that answers the same questions: who is signed in, and with which token?"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import requests
import sqlalchemy as sa

from benchmarks import client, routes
from benchmarks.client import Round
from benchmarks.deployment import CLIENT_TIMEOUT, Servers, running_backline, running_servers
from benchmarks.environments import REQUIREMENTS, node_environment, python_environment
from benchmarks.processes import WORKERS, Target, Tree, running_gunicorn, running_http
from benchmarks.progress import Options
from benchmarks.results import Figure, Section
from tests.helpers.flows import PASSWORD
from tests.helpers.sandbox_client import CLIENT_ID, CLIENT_SECRET
from tests.helpers.servers import Unavailable, free_port, process_environment, socket_of

SESSION, TOKEN = "/api/session", "/api/spotify/token"
# Requests per CPU second of ours, as a multiple of the alternative's.
LIMITS = {
    "better-auth get-session": (SESSION, 2.0),
    "better-auth get-access-token": (TOKEN, 2.7),
    "better-auth-server get-session": (SESSION, 3.5),
    "better-auth-server get-access-token": (TOKEN, 3.5),
    "Flask stack who am I": (SESSION, 2.0),
    "django-allauth headless session": (SESSION, 1.0),
    "fastapi-users who am I": (SESSION, 1.0),
}


@dataclass(frozen=True)
class Place:
    """Where an alternative runs, and what it uses."""

    name: str
    servers: Servers
    port: int

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment variables of its processes."""
        database = self.name.replace("-", "_")
        engine = sa.create_engine(self.servers.database_url)
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE IF NOT EXISTS {database} CHARACTER SET utf8mb4"))
        engine.dispose()
        database_socket = socket_of(self.servers.database_url)
        where = f"root@localhost/{database}?unix_socket={quote(database_socket)}&charset=utf8mb4"
        settings = {
            "url": self.url,
            "port": self.port,
            "workers": WORKERS,
            "secret": "a-secret-of-more-than-32-characters-for-benchmarks",
            "email": "ada@example.com",
            "database": database,
            "databaseSocket": database_socket,
            "database_url": f"mysql+mysqldb://{where}",
            "async_database_url": f"mysql+asyncmy://{where}",
            "redis_url": self.servers.redis_url,
            "redisSocket": self.servers.redis_url.removeprefix("unix://"),
            "clientId": CLIENT_ID,
            "clientSecret": CLIENT_SECRET,
            "accountsUrl": self.servers.sandbox.accounts_url,
            "apiUrl": self.servers.sandbox.api_url,
        }
        return {"BENCHMARK": json.dumps(settings), "NODE_ENV": "production"}


def run(options: Options) -> Section:
    """Measure our routes and the alternatives, interleaved."""
    notes = [f"Requests per second of CPU time of all server processes; {routes.CONDITIONS}."]
    with ExitStack() as stack:
        servers = stack.enter_context(running_servers())
        backline = stack.enter_context(running_backline(servers, routes.SHARED))
        targets = [target for target in routes.routes(backline) if target.name in (SESSION, TOKEN)]
        for name, start in ALTERNATIVES.items():
            try:
                targets += stack.enter_context(start(Place(name, servers, free_port())))
            except (Unavailable, AssertionError, requests.RequestException) as error:
                reason = " ".join(str(error).split())[:400]
                notes.append(f"**Not measured: {name}.** {reason}")
        rounds = routes.interleave(targets, options)
    return Section("Alternatives", list(_figures(rounds)), notes, routes.raw_rounds(rounds))


def _figures(rounds: Mapping[str, list[Round]]) -> Iterator[Figure]:
    rates = {name: 1000 / client.median(found, "cpu_ms") for name, found in rounds.items()}
    for name, found in rounds.items():
        if name in LIMITS:
            ours, limit = LIMITS[name]
            value = rates[ours] / rates[name]
            title, target = f"{ours} compared with {name}", limit
        else:
            value, title, target = 1.0, name, None
        more = {"requests/CPU s": rates[name], **routes.columns(found)}
        yield Figure(title, value, "x", at_least=target, more=more)


@contextmanager
def _better_auth(place: Place) -> Iterator[list[Target]]:
    home = node_environment(place.name)
    node = shutil.which("node")
    if node is None:
        raise Unavailable("node is not installed: apt-get install nodejs")
    command = [node, str(home / "server.mjs")]
    with running_http(command, place.port, place.env, cwd=home, ready="/api/auth/ok") as (_, tree):
        yield _connected_targets(place, tree)


@contextmanager
def _better_auth_server(place: Place) -> Iterator[list[Target]]:
    with _gunicorn(place, "better_auth_server", "create_app()") as tree:
        yield _connected_targets(place, tree)


@contextmanager
def _flask_stack(place: Place) -> Iterator[list[Target]]:
    account = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    with _gunicorn(place, "flask_stack", "create_app()") as tree, _http(place) as http:
        _post(http, f"{place.url}/register", json=account)
        _post(http, f"{place.url}/login", json=account)
        yield [_target("Flask stack who am I", f"{place.url}/me", tree, http, {"username": "ada"})]


@contextmanager
def _django_allauth(place: Place) -> Iterator[list[Target]]:
    base = f"{place.url}/_allauth/browser/v1"
    account = {"email": "ada@example.com", "password": PASSWORD}
    with _gunicorn(place, "django_allauth", "application") as tree, _http(place) as http:
        http.get(f"{base}/config", timeout=CLIENT_TIMEOUT).raise_for_status()
        http.headers["X-CSRFToken"] = http.cookies["csrftoken"]
        _post(http, f"{base}/auth/signup", json=account)
        expected = {"meta.is_authenticated": True}
        yield [_target("django-allauth headless session", f"{base}/auth/session", tree, http, expected)]


@contextmanager
def _fastapi_users(place: Place) -> Iterator[list[Target]]:
    python = str(python_environment(place.name) / "python")
    _prepare(place, python, "fastapi_users_app")
    command = [python, "-m", "uvicorn", "fastapi_users_app:app", "--workers", str(WORKERS)]
    command += ["--port", str(place.port), "--no-access-log", "--log-level", "warning"]
    account = {"email": "ada@example.com", "password": PASSWORD}
    with (
        running_http(command, place.port, place.env, cwd=REQUIREMENTS, ready="/openapi.json") as (_, tree),
        _http(place) as http,
    ):
        _post(http, f"{place.url}/auth/register", json=account)
        _post(http, f"{place.url}/auth/login", data={"username": account["email"], "password": PASSWORD})
        me = f"{place.url}/users/me"
        yield [_target("fastapi-users who am I", me, tree, http, {"email": account["email"]})]


ALTERNATIVES: dict[str, Callable[[Place], AbstractContextManager[list[Target]]]] = {
    "better-auth": _better_auth,
    "better-auth-server": _better_auth_server,
    "flask-stack": _flask_stack,
    "django-allauth": _django_allauth,
    "fastapi-users": _fastapi_users,
}


@contextmanager
def _gunicorn(place: Place, module: str, app: str) -> Iterator[Tree]:
    """Create the tables of a WSGI application, and run it."""
    python = str(python_environment(place.name) / "python")
    _prepare(place, python, module)
    name = f"{module}:{app}"
    with running_gunicorn(name, place.env, place.port, cwd=REQUIREMENTS, python=python) as (_, tree):
        yield tree


def _prepare(place: Place, python: str, module: str) -> None:
    done = subprocess.run(
        [python, "-m", module],
        cwd=REQUIREMENTS,
        env=process_environment(place.env),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"its tables cannot be created: {done.stderr.strip()[-300:]}")


def _connected_targets(place: Place, tree: Tree) -> list[Target]:
    """Sign up, connect Spotify, and return both routes of better-auth."""
    base = f"{place.url}/api/auth"
    with _http(place) as http:
        account = {"name": "Ada", "email": "ada@example.com", "password": PASSWORD}
        _post(http, f"{base}/sign-up/email", json=account)
        link = _post(http, f"{base}/link-social", json={"provider": "spotify", "callbackURL": "/"})
        callback = place.servers.sandbox.consent(link["url"], person="mira_t_42")
        http.get(callback, timeout=CLIENT_TIMEOUT, allow_redirects=False)
        accounts = http.get(f"{base}/list-accounts", timeout=CLIENT_TIMEOUT).json()
        found = [account["id"] for account in accounts if account["providerId"] == "spotify"]
        assert found, f"{place.name} did not connect Spotify: {accounts}"
        session = _target(
            f"{place.name} get-session", f"{base}/get-session", tree, http, {"user.email": account["email"]}
        )
        selection = {"accountId": found[0]}
        issued = _post(http, f"{base}/get-access-token", json=selection)
        expected = {"accessToken": issued["accessToken"]}
        token = _target(f"{place.name} get-access-token", f"{base}/get-access-token", tree, http, expected)
        headers = {**token.headers, "Content-Type": "application/json"}
        return [session, replace(token, headers=headers, body=json.dumps(selection))]


@contextmanager
def _http(place: Place) -> Iterator[requests.Session]:
    with requests.Session() as http:
        http.trust_env = False
        http.headers.update({"Origin": place.url, "Accept": "application/json"})
        yield http


def _post(http: requests.Session, url: str, **body: Any) -> Any:
    response = http.post(url, timeout=CLIENT_TIMEOUT, allow_redirects=False, **body)
    assert response.ok, f"{url}: {response.status_code} {response.text}"
    return response.json() if response.content else None


def _target(
    name: str, url: str, tree: Tree, http: requests.Session, expected: Mapping[str, object]
) -> Target:
    cookie = "; ".join(f"{one.name}={one.value}" for one in http.cookies)
    return Target(name, url, tree, {"Cookie": cookie, "Origin": str(http.headers["Origin"])}, expected)
