"""The errors of the API: one class for each kind. `app.web.error_handlers` makes the responses (RFC 9457).

Problem
├── MalformedRequest 400            ├── NotSignedIn 401
├── UnsupportedMediaType 415        ├── InvalidCredentials 401
├── ValidationError 422             ├── UsernameTaken, EmailTaken 409
├── PayloadTooLarge 413             ├── SpotifyNotConnected 409
├── NotFound 404                    ├── SpotifyReauthorizationRequired 409
├── MethodNotAllowed 405            ├── SpotifyAccountInUse, SpotifyAccountMismatch 409
├── InternalError 500               ├── SpotifyAccessDenied 401
├── ServiceUnavailable 503          ├── SpotifyStateMismatch 400
├── CrossSiteRequest 403            ├── SpotifyUnavailable, SpotifyMisconfigured 503
├── InsufficientScope 403           ├── SpotifyRateLimited 429
├── FreshSignInRequired 403         └── TooManyAttempts 429
└── InvalidToken 400
"""

import redis
import sqlalchemy.exc
from werkzeug.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class Problem(HTTPException):
    """An error response. `detail` tells a person what to do; `members` are for programs."""

    code: int
    slug: str
    title: str
    detail: str
    retry_after: int | None = None

    def __init__(
        self, detail: str | None = None, *, retry_after: int | None = None, **members: object
    ) -> None:
        super().__init__()
        self.detail = self.detail if detail is None else detail
        self.retry_after = self.retry_after if retry_after is None else retry_after
        self.members = members


class MalformedRequest(Problem):
    code, slug, title = 400, "malformed-request", "The request is malformed"
    detail = "It is not valid HTTP, or it is meant for another host."


class UnsupportedMediaType(Problem):
    code, slug, title = (415, "unsupported-media-type", "This media type is not supported")
    detail = "Send JSON with Content-Type: application/json."


class ValidationError(Problem):
    code, slug, title = 422, "validation-error", "The request is invalid"
    detail = "The member errors says what is wrong with each field."


class PayloadTooLarge(Problem):
    code, slug, title = 413, "payload-too-large", "The body is too large"
    detail = "Send at most 64 KiB."


class NotFound(Problem):
    code, slug, title = 404, "not-found", "Not found"
    detail = "/api/docs lists all routes."


class MethodNotAllowed(Problem):
    code, slug, title = 405, "method-not-allowed", "This method is not allowed"
    detail = "The Allow header lists the methods that are."


class InternalError(Problem):
    code, slug, title = 500, "internal-error", "Something went wrong on our side"
    detail = "The log has the details under this request_id."


class ServiceUnavailable(Problem):
    code, slug, title = (503, "service-unavailable", "The service is temporarily unavailable")
    detail = "Please try again shortly."
    retry_after = 5


class CrossSiteRequest(Problem):
    code, slug, title = 403, "cross-site-request", "Cross-site request refused"
    detail = (
        "Call the API from a page of the app. A request that changes something or goes to /api/spotify/v1/ "
        "needs an X-Requested-With header and, if it carries an Origin, one of this API's allowed origins."
    )


class NotSignedIn(Problem):
    code, slug, title = 401, "not-signed-in", "Please sign in"
    detail = "Send the session cookie from POST /api/login or /api/register."


class FreshSignInRequired(Problem):
    code, slug, title = 403, "fresh-sign-in-required", "Please confirm that it is you"
    detail = "Sign in again, or send current_password. A sign-in counts for 15 minutes."


class InvalidCredentials(Problem):
    code, slug, title = 401, "invalid-credentials", "The login or the password is wrong"
    detail = "The login is a username or an email address."


class TooManyAttempts(Problem):
    code, slug, title = 429, "too-many-attempts", "Too many attempts"
    detail = "Wait for as long as Retry-After says."
    retry_after = 60


class InvalidToken(Problem):
    code, slug, title = 400, "invalid-token", "This link is invalid or has expired"
    detail = "It may have been used already. Request another email."


class UsernameTaken(Problem):
    code, slug, title = 409, "username-taken", "This username is taken"
    detail = "Choose another one."


class EmailTaken(Problem):
    code, slug, title = 409, "email-taken", "This email address is taken"
    detail = (
        "Another account has it, or had it until recently. Sign in to that account, or use another address."
    )


class SpotifyNotConnected(Problem):
    code, slug, title = 409, "spotify-not-connected", "Spotify is not connected"
    detail = "Send the person through GET /api/spotify/authorize first."


class SpotifyReauthorizationRequired(Problem):
    code, slug, title = (409, "spotify-reauthorization-required", "Spotify must be connected again")
    detail = "Spotify has ended this app's access. Send the person to authorize_url."


class SpotifyAccountInUse(Problem):
    code, slug, title = (
        409,
        "spotify-account-in-use",
        "This Spotify account is connected to another account",
    )
    detail = (
        "Nothing was changed. Choose another Spotify account, or sign in to the account that has this one."
    )


class SpotifyAccountMismatch(Problem):
    code, slug, title = (409, "spotify-account-mismatch", "Another Spotify account is connected already")
    detail = "Nothing was changed. Disconnect Spotify first to connect a different account."


class SpotifyAccessDenied(Problem):
    code, slug, title = 401, "spotify-access-denied", "Access to Spotify was not granted"
    detail = "Nothing was changed. Start again at GET /api/spotify/authorize."


class SpotifyStateMismatch(Problem):
    code, slug, title = (400, "spotify-state-mismatch", "This authorization is not valid here")
    detail = (
        "The state is missing, used, expired, or from another session. "
        "Start again at GET /api/spotify/authorize."
    )


class SpotifyUnavailable(Problem):
    code, slug, title = (503, "spotify-unavailable", "Spotify is not responding properly")
    detail = "The connection is unaffected. Try again shortly."
    retry_after = 5


class SpotifyRateLimited(Problem):
    code, slug, title = 429, "spotify-rate-limited", "Spotify's rate limit is reached"
    detail = "Wait for as long as Retry-After says."
    retry_after = 30


class SpotifyMisconfigured(Problem):
    code, slug, title = (
        503,
        "spotify-misconfigured",
        "This server's Spotify application is misconfigured",
    )
    detail = "Its operator has to correct the Spotify settings; the log says why."
    retry_after = 300


class InsufficientScope(Problem):
    code, slug, title = (403, "insufficient-scope", "A Spotify permission is missing")
    detail = "Connect Spotify again, with the permission that this call needs."


# What the drivers of MySQL and Redis raise when the server is away, stalled or overrun.
DEPENDENCY_DOWN = (
    redis.RedisError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)
