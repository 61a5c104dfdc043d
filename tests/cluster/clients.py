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
# The app's responses when something is wrong, and nginx's for a call that Spotify may have received.
_attempts = itertools.count(1)
FAILURES = (409, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Response:
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
    """One request: when its response came, and what was wrong."""

    at: float
    failure: str | None


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
        return Response(response.status, content)

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


@dataclass
class Client:
    """A person who does one thing after the other, and notes the results."""

    person: Person
    random: random.Random
    returned: list[ReturnedToken]
    results: list[Result] = field(default_factory=list)
    lost_sessions: int = 0
    _writes: int = 0

    def step(self) -> None:
        """Do one thing. Nothing is repeated: the next step is another request."""
        step = self.random.choice((self._session, self._session, self._token, self._player, self._seek))
        try:
            response = step()
            failure = str(response.status) if response.status in FAILURES else None
        except (OSError, http.client.HTTPException) as error:
            failure = type(error).__name__
        self.results.append(Result(time.monotonic(), failure))

    def _session(self) -> Response:
        response = self.person.call("GET", "/api/session")
        if response.status == 200 and not response.json()["authenticated"]:
            self.lost_sessions += 1
        return response

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

    def gap(self, began: float, ended: float) -> float:
        """Return the longest time between two successes, from the last one before `began` to `ended`."""
        successes = [result.at for result in self.results if result.failure is None and result.at <= ended]
        before = [at for at in successes if at < began][-1:] or [began]
        moments = [*before, *(at for at in successes if at >= began), ended]
        return max(after - at for at, after in pairwise(moments))

    def failures(self, began: float, ended: float) -> Counter[str]:
        during = (result for result in self.results if began <= result.at <= ended)
        return Counter(result.failure for result in during if result.failure is not None)


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
