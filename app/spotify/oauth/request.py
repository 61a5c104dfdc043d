"""What a request to `GET /api/spotify/authorize` asks for, and the possible results."""

from dataclasses import dataclass

from app.models import SpotifyUser
from app.models.snapshots import ConnectionSnapshot

Connection = SpotifyUser | ConnectionSnapshot


@dataclass(frozen=True)
class AuthorizeRequest:
    """The parameters of one request. An empty one counts as absent (RFC 6749 section 3.1)."""

    code: str | None = None
    error: str | None = None
    state: str | None = None
    reauthorize: bool = False
    scopes: tuple[str, ...] = ()
    return_to: str | None = None
    repeated: tuple[str, ...] = ()  # names of parameters with more than one value

    @property
    def is_callback(self) -> bool:
        """Whether the request looks like a redirect from Spotify."""
        return self.code is not None or self.error is not None


@dataclass(frozen=True)
class Connected:
    """The session uses this connection. `callback_ignored`: the request was another session's callback.

    `return_to` is the page of the app that the person returns to.
    """

    spotify_user: Connection
    return_to: str | None = None
    callback_ignored: bool = False


@dataclass(frozen=True)
class AuthorizationRequired:
    """The person has to consent at Spotify. `AuthorizationFlow.start` returns the URL."""

    grant_ended: bool = False
