"""The errors of the application's core. `app.web.problems` says how the API reports each of them."""

import redis
import sqlalchemy.exc

# What the drivers of MySQL and Redis raise when a server is down, stalled, or overloaded.
DEPENDENCY_DOWN = (
    redis.RedisError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


class BacklineError(Exception):
    """An error that the caller can do something about.

    `detail` is for a person, and None where the kind of error says enough. `members` are for programs.
    `retry_after` is in seconds.
    """

    detail: str | None = None
    retry_after: int | None = None

    def __init__(
        self, detail: str | None = None, *, retry_after: int | None = None, **members: object
    ) -> None:
        super().__init__(detail or type(self).__name__)
        self.detail = self.detail if detail is None else detail
        self.retry_after = self.retry_after if retry_after is None else retry_after
        self.members = members


class ServiceUnavailable(BacklineError):
    """MySQL, Redis, or another part of this server does not work at present."""

    retry_after = 5


class ValidationError(BacklineError):
    """An argument is not acceptable. The member `errors` maps fields to messages."""


class NotSignedIn(BacklineError):
    """Nobody is signed in, or the session has ended."""


class FreshSignInRequired(BacklineError):
    """The last sign-in is too long ago for this."""


class InvalidCredentials(BacklineError):
    """The login or the password is wrong."""


class TooManyAttempts(BacklineError):
    """The caller has done this too often."""

    retry_after = 60


class InvalidToken(BacklineError):
    """An emailed token is unknown, used, or expired."""


class UsernameTaken(BacklineError):
    """Another account has this username."""


class EmailTaken(BacklineError):
    """Another account has this email address, or had it until recently."""


class SpotifyNotConnected(BacklineError):
    """There is no connection with Spotify."""


class SpotifyReauthorizationRequired(BacklineError):
    """Spotify has ended the grant. The person has to consent again."""


class SpotifyAccountInUse(BacklineError):
    """The Spotify account is connected to another user."""


class SpotifyAccountMismatch(BacklineError):
    """The user is connected to another Spotify account."""


class SpotifyAccessDenied(BacklineError):
    """The person, or Spotify, denied access."""


class SpotifyStateMismatch(BacklineError):
    """The state of an OAuth callback is missing, used, expired, or another session's."""


class SpotifyUnavailable(BacklineError):
    """Spotify does not respond, or not usably."""

    retry_after = 5


class SpotifyRateLimited(BacklineError):
    """Spotify wants no calls for a while."""

    retry_after = 30


class SpotifyMisconfigured(BacklineError):
    """Spotify rejects this server's client id or secret."""

    retry_after = 300


class InsufficientScope(BacklineError):
    """The grant lacks a permission that the call needs."""
