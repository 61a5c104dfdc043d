"""People's browsers."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.chaos.history import ReturnedToken, short_id
from tests.helpers.flows import PASSWORD
from tests.helpers.processes import ApiServer
from tests.helpers.sandbox_client import SandboxClient, callback_query
from tests.helpers.servers import LONG


class Browser:
    """One person's browser. It can use any server, because cookies ignore ports.

    It adds the tokens that it gets to `returned`.
    """

    def __init__(
        self, sandbox: SandboxClient, returned: list[ReturnedToken], person: str, username: str
    ) -> None:
        self._sandbox = sandbox
        self._returned = returned
        self.person = person
        self.username = username
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.headers.update({"X-Requested-With": "chaos", "Accept": "application/json"})

    def call(self, method: str, path: str, server: ApiServer, **request: Any) -> requests.Response:
        return self._http.request(method, f"{server.url}{path}", timeout=LONG, **request)

    def register(self, server: ApiServer) -> "Browser":
        account = {"username": self.username, "email": f"{self.username}@example.com", "password": PASSWORD}
        response = self.call("POST", "/api/register", server, json=account)
        assert response.status_code == 201, response.text
        return self

    def login(self, server: ApiServer) -> requests.Response:
        return self.call("POST", "/api/login", server, json={"login": self.username, "password": PASSWORD})

    def another(self) -> "Browser":
        """Return another browser of the same person, not signed in."""
        return Browser(self._sandbox, self._returned, self.person, self.username)

    def bring(self, application: dict[str, Any], server: ApiServer, *, public: bool) -> requests.Response:
        """Register an application of this person's own. Without its secret, it is a public client."""
        wanted = {"client_id": application["client_id"]}
        if not public:
            wanted["client_secret"] = application["client_secret"]
        return self.call("PUT", "/api/spotify/app", server, json=wanted)

    def connect(self, server: ApiServer) -> requests.Response:
        """Connect Spotify, as a person without a connection. Returns the last response."""
        return self.send_callback(server, self.consent(server))

    def consent(self, server: ApiServer) -> dict[str, str]:
        """Consent at Spotify. Returns the parameters of the callback."""
        visit = self.call("GET", "/api/spotify/authorize", server)
        assert "authorize_url" in visit.text, visit.text
        url = visit.json()["authorize_url"]
        # Bypass the server's proxy to Spotify: a person's browser is not affected by its faults.
        direct = urlsplit(self._sandbox.url)
        url = urlsplit(url)._replace(netloc=direct.netloc).geturl()
        return callback_query(self._sandbox.consent(url, person=self.person))

    def send_callback(self, server: ApiServer, callback: dict[str, str]) -> requests.Response:
        return self.call("GET", "/api/spotify/authorize", server, params=callback)

    def token(self, server: ApiServer) -> requests.Response:
        response = self.call("GET", "/api/spotify/token", server)
        if response.status_code == 200:
            token = short_id(response.json()["access_token"])
            self._returned.append(ReturnedToken(datetime.now(UTC), self.person, token))
        return response

    def awaited_token(self, server: ApiServer) -> requests.Response:
        return follow_retry_after(lambda: self.token(server))

    def disconnect(self, server: ApiServer) -> requests.Response:
        return self.call("DELETE", "/api/spotify", server)


def follow_retry_after(send: Callable[[], requests.Response]) -> requests.Response:
    """Retry while Spotify counts as slow, as it can on a busy machine."""
    for _ in range(10):
        response = send()
        if response.status_code != 503:
            break
        time.sleep(int(response.headers["Retry-After"]))
    return response
