"""The client of a Backline server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import urlsplit

import requests

from backline_client.device_login import request_token
from backline_client.errors import ApiError, raise_for_problem
from backline_client.token_file import read_token, write_token

if TYPE_CHECKING:
    import spotipy  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import tekore  # type: ignore[import-untyped, import-not-found, unused-ignore]

# A server may need this long: it waits for Spotify, and keeps to Spotify's rate limit.
TIMEOUT_SECONDS = 30


class Backline:
    """A Backline server, as the owner of a personal access token.

    Args:
        url: The server's URL, such as `https://api.example.com`.
        token: A personal access token, from the app's page for tokens or from `Backline.login`.

    Raises:
        ValueError: The URL would send the token over the network unencrypted.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = _checked(url)
        self._token = token
        self._http = requests.Session()
        self._http.auth = self._authorize

    @classmethod
    def login(
        cls,
        url: str,
        client_name: str,
        rights: Iterable[str] = ("spotify:read",),
        *,
        token_file: str | Path | None = None,
        show: Callable[[str], object] = print,
    ) -> Backline:
        """Ask a person to approve this program in their browser (RFC 8628), and wait until they do.

        Args:
            url: The server's URL.
            client_name: What the person sees as the name of this program, and of its token.
            rights: Any of `spotify:read`, `spotify:write`, `account:read`.
            token_file: Where to store the token, for its owner only. A token that is there already, and still
                works, is used without asking. If None, nothing is stored.
            show: Called with the text that tells the person what to do.

        Raises:
            LoginError: The person denied it, or did not approve it in time, or the request is invalid.
            ApiError: The server does not offer this, or is not available.
        """
        path = Path(token_file) if token_file is not None else None
        if path is not None and (stored := read_token(path)):
            backline = cls(url, stored)
            if backline._works():
                return backline
        token = request_token(_checked(url), client_name, rights, show)
        if path is not None:
            write_token(path, token)
        return cls(url, token)

    def session(self) -> dict[str, Any]:
        """Return the account and the connection to Spotify, each if the token has the right to read it."""
        return self._get("/api/session")

    def user(self) -> dict[str, Any]:
        """Return the account. Needs the right `account:read`."""
        return self._get("/api/user")

    def connection(self) -> dict[str, Any]:
        """Return the connection to Spotify. Needs the right `spotify:read`."""
        return self._get("/api/spotify")

    @overload
    def spotify(self, library: Literal["spotipy"] = ..., **options: Any) -> spotipy.Spotify: ...

    @overload
    def spotify(self, library: Literal["tekore"], **options: Any) -> tekore.Spotify: ...

    def spotify(self, library: str = "spotipy", **options: Any) -> Any:
        """Return a client of spotipy or tekore for Spotify's Web API, ready to use.

        Args:
            library: `spotipy` or `tekore`, which has to be installed.
            options: For the library's own client, such as `language` (spotipy) or `asynchronous` (tekore).
        """
        if library == "spotipy":
            from backline_client.with_spotipy import make_client

            return make_client(self.url, self._token, **{"requests_timeout": TIMEOUT_SECONDS, **options})
        if library == "tekore":
            from backline_client.with_tekore import Client

            return Client(self.url, self._token, **options)
        raise ValueError(f"library must be spotipy or tekore, not {library!r}")

    def __repr__(self) -> str:
        return f"Backline({self.url!r})"

    def _get(self, path: str) -> dict[str, Any]:
        response = self._http.get(f"{self.url}{path}", timeout=TIMEOUT_SECONDS)
        raise_for_problem(response)
        members: dict[str, Any] = response.json()
        return members

    def _works(self) -> bool:
        try:
            self.session()
        except ApiError as error:
            if error.slug == "invalid-bearer-token":
                return False
            raise
        return True

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, because requests would replace a header of our own with a password from ~/.netrc.
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _checked(url: str) -> str:
    parts = urlsplit(url)
    is_loopback = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback):
        raise ValueError(f"{url!r} must begin with https:// (http:// is for this machine only)")
    return url.rstrip("/")
