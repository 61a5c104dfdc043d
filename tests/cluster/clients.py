"""People who use the API all the time, each with a session and a connection to Spotify."""

import http.client
import itertools
import json
import random
import socket
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.cookies import SimpleCookie
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from tests.chaos.history import ReturnedToken, short_id
from tests.cluster.balancer import HTTPS_PORT
from tests.helpers.flows import PASSWORD
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import Nginx, eventually

PAUSE_SECONDS = 0.15
PATIENCE_SECONDS = 60
_attempts = itertools.count(1)
# What the calls promise: a body, or nothing, such as after a seek.
SUCCESSES = (200, 204)
# Responses of the app and nginx when something is wrong. 409 only for a write that Spotify may have received.
FAILURES = (409, 429, 502, 503, 504)
_OUTCOME_UNKNOWN = b"spotify-outcome-unknown"


class Violation(Exception):
    """A response that no fault may cause."""


@dataclass(frozen=True)
class Response:
    call: str
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection(http.client.HTTPSConnection):
    """A connection to nginx, under the name that its certificate has."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(Nginx.HOST, timeout=PATIENCE_SECONDS, context=context)
        self._tls = context

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", HTTPS_PORT), timeout=PATIENCE_SECONDS)
        self.sock = self._tls.wrap_socket(plain, server_hostname=Nginx.HOST)


@dataclass(frozen=True)
class Result:
    """One request: when its response came, what was wrong, how long it took, and what it was."""

    at: float
    failure: str | None
    seconds: float = 0.0
    call: str = ""


class Person:
    """A person with a browser."""

    def __init__(self, certificate: Path, person: str, username: str) -> None:
        self.person = person
        self.username = username
        self._context = ssl.create_default_context(cafile=str(certificate))
        self._connection = Connection(self._context)
        self._cookies: dict[str, str] = {}

    def call(self, method: str, path: str, body: object = None) -> Response:
        """Send a request once.

        Raises:
            OSError: There was no response.
            http.client.HTTPException: There was no complete response.
        """
        headers = {
            "X-Requested-With": "cluster",
            "Accept": "application/json",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items()),
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            content = response.read()
        except BaseException:
            self._connection.close()
            raise
        for header in response.headers.get_all("Set-Cookie") or ():
            for name, morsel in SimpleCookie(header).items():
                self._cookies[name] = morsel.value
        return Response(f"{method} {path.partition('?')[0]}", response.status, content)

    def register(self) -> bool:
        """Create an account. Another attempt creates another one."""
        name = f"{self.username}x{next(_attempts)}"
        account = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        response = self.call("POST", "/api/register", account)
        assert response.status == 201, response.body
        return True

    def connect_spotify(self, sandbox: SandboxClient) -> bool:
        visit = self.call("GET", "/api/spotify/authorize")
        assert visit.status == 200, visit.body
        callback = callback_query(sandbox.consent(visit.json()["authorize_url"], person=self.person))
        query = "&".join(f"{name}={value}" for name, value in callback.items())
        response = self.call("GET", f"/api/spotify/authorize?{query}")
        assert response.status == 200, response.body
        return True

    def choose_device(self) -> bool:
        """Make the person's first device the active one. Without one, Spotify rejects seeks."""
        response = self.call("GET", "/api/spotify/v1/me/player/devices")
        assert response.status == 200, response.body
        devices = [device["id"] for device in response.json()["devices"]]
        response = self.call("PUT", "/api/spotify/v1/me/player", {"device_ids": devices[:1]})
        assert response.status == 204, response.body
        return True


def failure_of(response: Response) -> str | None:
    """Return the status of a failure that clients have to expect, or None for what the call promises.

    Raises:
        Violation: The session or the grant is gone (401, 403, 404, another 409), an error was not handled
            (500), or anything else that is neither promised nor expected.
    """
    if response.status in FAILURES and (response.status != 409 or _OUTCOME_UNKNOWN in response.body):
        return str(response.status)
    if response.status not in SUCCESSES:
        raise Violation(f"{response.call}: {response.status} {response.body[:120]!r}")
    if response.call == "GET /api/session" and not response.json()["authenticated"]:
        raise Violation(f"{response.call}: signed out")
    return None


@dataclass(frozen=True)
class Gap:
    """A time without a successful response, and the requests that ended in it or with it."""

    seconds: float
    results: list[Result]

    def __str__(self) -> str:
        return ", ".join(f"{one.call} {one.failure or 'ok'} {one.seconds:.1f} s" for one in self.results)


@dataclass
class Client:
    """A person who does one thing after the other, and notes the results."""

    person: Person
    random: random.Random
    returned: list[ReturnedToken]
    results: list[Result] = field(default_factory=list)
    violations: Counter[str] = field(default_factory=Counter)
    _writes: int = 0

    def step(self) -> None:
        """Do one thing. Nothing is repeated: the next step is another request."""
        step = self.random.choice((self._session, self._session, self._token, self._player, self._seek))
        began = time.monotonic()
        try:
            failure = failure_of(step())
        except (OSError, http.client.HTTPException) as error:
            failure = type(error).__name__
        except Violation as violation:
            failure = str(violation)
            self.violations[failure] += 1
        ended = time.monotonic()
        self.results.append(Result(ended, failure, ended - began, step.__name__.removeprefix("_")))

    def _session(self) -> Response:
        return self.person.call("GET", "/api/session")

    def _token(self) -> Response:
        response = self.person.call("GET", "/api/spotify/token")
        if response.status == 200:
            token = short_id(response.json()["access_token"])
            self.returned.append(ReturnedToken(datetime.now(UTC), self.person.person, token))
        return response

    def _player(self) -> Response:
        return self.person.call("GET", "/api/spotify/v1/me/player")

    def _seek(self) -> Response:
        """Send a write that differs from all others of this person."""
        self._writes += 1
        return self.person.call("PUT", f"/api/spotify/v1/me/player/seek?position_ms={self._writes}")

    def gap(self, began: float, ended: float) -> "Gap":
        """Return the longest time between two successes, from the last one before `began` to `ended`."""
        successes = [result.at for result in self.results if result.failure is None and result.at <= ended]
        before = [at for at in successes if at < began][-1:] or [began]
        moments = [*before, *(at for at in successes if at >= began), ended]
        start, end = max(pairwise(moments), key=lambda pair: pair[1] - pair[0])
        return Gap(end - start, [result for result in self.results if start < result.at <= end])


class Clients:
    """Several clients, each in its own thread, as long as the block."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client,), daemon=True) for client in clients
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: Client) -> None:
        while not self._ending.wait(PAUSE_SECONDS * client.random.uniform(0.5, 1.5)):
            client.step()

    def wait_until_all_succeed(self) -> None:
        """Wait until each client has a success from now on."""
        now = time.monotonic()
        eventually(
            lambda: all(
                any(result.at > now and result.failure is None for result in client.results[-20:])
                for client in self.clients
            )
        )


def sent_twice(journal: list[dict[str, Any]]) -> list[str]:
    """Return the writes that Spotify received more than once. No client ever sends one again."""
    seeks = Counter(
        f"{call['person']} {call['query']}" for call in journal if call["path"].endswith("/me/player/seek")
    )
    return [write for write, count in seeks.items() if count > 1]
