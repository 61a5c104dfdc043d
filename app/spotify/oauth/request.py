"""What a request to `GET /api/spotify/authorize` asks for, and the possible results."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.orm import Session

from app.models import User
from app.models.snapshots import Connection

SIGN_IN = "sign_in"  # the only `intent`


@dataclass(frozen=True)
class AuthorizeRequest:
    """The parameters of one request. An empty one counts as absent (RFC 6749 section 3.1)."""

    code: str | None = None
    error: str | None = None
    state: str | None = None
    reauthorize: bool = False
    scopes: tuple[str, ...] = ()
    return_to: str | None = None
    intent: str | None = None
    repeated: tuple[str, ...] = ()  # names of parameters with more than one value

    @property
    def signs_in(self) -> bool:
        """Whether the person wants to sign in with Spotify."""
        return self.intent == SIGN_IN

    @property
    def is_callback(self) -> bool:
        """Whether the request looks like a redirect from Spotify."""
        return self.code is not None or self.error is not None


class SignIn(Protocol):
    """What signing in with Spotify needs of accounts and sessions."""

    def create_account(self, db: Session, display_name: str | None) -> User:
        """Create an account in the caller's transaction."""

    def start_session(self, user: User) -> None:
        """Sign the user in, with a new session id."""


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
