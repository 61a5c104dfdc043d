"""Errors that the application raises. `app.web.problems` defines how the API reports each of them."""

import redis
import sqlalchemy.exc

# Exceptions that the MySQL and Redis drivers raise if a server is down, stalled, or overloaded.
DEPENDENCY_DOWN = (
    redis.RedisError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


class BacklineError(Exception):
    """Base class of all errors that are reported to the caller.

    `detail` is a sentence for people, or None for the default of this kind of error. `members` are for
    programs. `retry_after` is in seconds.
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
    """MySQL, Redis, or another part of this server is not available."""

    retry_after = 5


class ValidationError(BacklineError):
    """The request has invalid fields. The member `errors` maps each of them to messages."""


class NotSignedIn(BacklineError):
    """No one is signed in, or the session has ended."""


class InvalidBearerToken(BacklineError):
    """The bearer token is malformed, unknown, expired, or revoked."""


class InsufficientRights(BacklineError):
    """The bearer token may not be used for this."""


class FreshSignInRequired(BacklineError):
    """The last sign-in was too long ago for this."""


class InvalidCredentials(BacklineError):
    """The login or the password is wrong."""


class TooManyAttempts(BacklineError):
    """The caller has done this too often."""

    retry_after = 60


class InvalidToken(BacklineError):
    """An emailed token is unknown, used, or expired."""


class UsernameTaken(BacklineError):
    """Another account has this username."""


class LastWayIn(BacklineError):
    """Without this, the person could no longer sign in."""


class TooManyTokens(BacklineError):
    """The account has as many personal access tokens as it may have."""


class EmailTaken(BacklineError):
    """Another account uses this email address, or used it until recently."""


class SpotifyNotConnected(BacklineError):
    """There is no connection to Spotify."""


class SpotifyAppsDisabled(BacklineError):
    """People cannot register an application of their own here."""


class SpotifyAppRequired(BacklineError):
    """The person needs an application of their own to connect, and has none."""


class SpotifyAppNotAccepted(BacklineError):
    """Spotify rejects an application that someone wants to register. The member `errors` says which field."""


class SpotifyAppRefused(BacklineError):
    """Spotify rejects a person's own application, with which they have connected."""


class SpotifyUserNotRegistered(BacklineError):
    """The person is not on the allowlist of their own application."""


class SpotifyReauthorizationRequired(BacklineError):
    """Spotify has ended the grant. The person has to give consent again."""


class SpotifyAccountInUse(BacklineError):
    """The Spotify account is connected to another user."""


class SpotifyAccountMismatch(BacklineError):
    """The user is connected to another Spotify account."""


class SpotifyAccessDenied(BacklineError):
    """The person, or Spotify, denied access."""


class SpotifyStateMismatch(BacklineError):
    """The state of an OAuth callback is missing, used, expired, or another session's."""


class SpotifyUnavailable(BacklineError):
    """Spotify does not respond, or its response cannot be used."""

    retry_after = 5


class SpotifyOutcomeUnknown(BacklineError):
    """A write was sent to Spotify, but no response arrived. Clients must not repeat it by themselves."""


class SpotifyRateLimited(BacklineError):
    """Spotify's rate limit has been reached."""

    retry_after = 30


class SpotifyMisconfigured(BacklineError):
    """Spotify rejects this server's client id or secret."""

    retry_after = 300


class InsufficientScope(BacklineError):
    """The grant does not include a permission that the call needs."""
