"""How the API reports errors: a status, a slug, a title, and a default detail for each (RFC 9457).

`app.web.error_handlers` makes the responses.
"""

from dataclasses import dataclass

from app.errors import (
    BacklineError,
    EmailTaken,
    FreshSignInRequired,
    InsufficientRights,
    InsufficientScope,
    InvalidBearerToken,
    InvalidCredentials,
    InvalidToken,
    LastWayIn,
    NotSignedIn,
    ServiceUnavailable,
    SpotifyAccessDenied,
    SpotifyAccountInUse,
    SpotifyAccountMismatch,
    SpotifyAppNotAccepted,
    SpotifyAppRefused,
    SpotifyAppRequired,
    SpotifyAppsDisabled,
    SpotifyMisconfigured,
    SpotifyNotConnected,
    SpotifyOutcomeUnknown,
    SpotifyRateLimited,
    SpotifyReauthorizationRequired,
    SpotifyStateMismatch,
    SpotifyUnavailable,
    SpotifyUserNotRegistered,
    TooManyAttempts,
    TooManyTokens,
    UsernameTaken,
    ValidationError,
)

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemType:
    """The common parts of all responses to one kind of error."""

    status: int
    slug: str
    title: str
    detail: str


class MalformedRequest(BacklineError):
    """The request is not valid HTTP or JSON."""


class UnsupportedMediaType(BacklineError):
    """The body has a media type that the route does not accept."""


class PayloadTooLarge(BacklineError):
    """The body is too large."""


class NotFound(BacklineError):
    """There is nothing at this URL."""


class MethodNotAllowed(BacklineError):
    """The route does not have this method."""


class InternalError(BacklineError):
    """An unexpected error."""


class CrossSiteRequest(BacklineError):
    """Another site made the browser send this request."""


PROBLEM_TYPES: dict[type[BacklineError], ProblemType] = {
    InvalidToken: ProblemType(
        400,
        "invalid-token",
        "This link is invalid or has expired",
        "It may already have been used. Request a new email.",
    ),
    MalformedRequest: ProblemType(
        400,
        "malformed-request",
        "The request is malformed",
        "It is not valid HTTP, or it is for another host.",
    ),
    SpotifyStateMismatch: ProblemType(
        400,
        "spotify-state-mismatch",
        "This authorization is not valid",
        (
            "The state is missing, used, expired, or from another session. Start again at GET "
            "/api/spotify/authorize."
        ),
    ),
    InvalidCredentials: ProblemType(
        401,
        "invalid-credentials",
        "The login or the password is wrong",
        "The login is a username or an email address.",
    ),
    InvalidBearerToken: ProblemType(
        401,
        "invalid-bearer-token",
        "This token is not valid",
        "It is missing or malformed, or it has expired or been revoked. Create a new personal access token.",
    ),
    NotSignedIn: ProblemType(
        401,
        "not-signed-in",
        "Please sign in",
        "Send the session cookie from POST /api/login or /api/register.",
    ),
    SpotifyAccessDenied: ProblemType(
        401,
        "spotify-access-denied",
        "Access to Spotify was not granted",
        "Nothing was changed. Start again at GET /api/spotify/authorize.",
    ),
    CrossSiteRequest: ProblemType(
        403,
        "cross-site-request",
        "Cross-site request rejected",
        (
            "Call the API from a page of the app. A request that changes something or goes to "
            "/api/spotify/v1/ needs an X-Requested-With header. If it has an Origin, that must be an "
            "allowed one."
        ),
    ),
    FreshSignInRequired: ProblemType(
        403,
        "fresh-sign-in-required",
        "Please confirm your identity",
        "Sign in again, or send current_password. A sign-in counts for 15 minutes.",
    ),
    InsufficientRights: ProblemType(
        403,
        "insufficient-rights",
        "This token is not allowed to do this",
        "A personal access token cannot change the account. Sign in instead.",
    ),
    InsufficientScope: ProblemType(
        403,
        "insufficient-scope",
        "A Spotify permission is missing",
        "Connect Spotify again, with the permission that this call needs.",
    ),
    SpotifyAppsDisabled: ProblemType(
        403,
        "spotify-apps-disabled",
        "This server does not use people's own Spotify applications",
        "Everyone connects with the application of the server. Nothing was changed.",
    ),
    SpotifyUserNotRegistered: ProblemType(
        403,
        "spotify-user-not-registered",
        "Your Spotify application does not allow this person",
        (
            "Add the name and the email address of the Spotify account to User Management in the "
            "application's settings in Spotify's dashboard, and check that the owner of the application has "
            "Premium. Then connect again."
        ),
    ),
    NotFound: ProblemType(404, "not-found", "Not found", "/api/docs lists all routes."),
    MethodNotAllowed: ProblemType(
        405,
        "method-not-allowed",
        "This method is not allowed",
        "The Allow header lists the allowed methods.",
    ),
    EmailTaken: ProblemType(
        409,
        "email-taken",
        "This email address is taken",
        (
            "Another account uses it, or used it until recently. Sign in to that account, or use "
            "another address."
        ),
    ),
    LastWayIn: ProblemType(
        409,
        "last-way-in",
        "This is your only way to sign in",
        "Nothing was changed. Choose a password or verify an email address first.",
    ),
    SpotifyAccountInUse: ProblemType(
        409,
        "spotify-account-in-use",
        "This Spotify account is connected to another account",
        "Nothing was changed. Choose another Spotify account, or sign in to the account that uses it.",
    ),
    SpotifyAccountMismatch: ProblemType(
        409,
        "spotify-account-mismatch",
        "Another Spotify account is connected already",
        "Nothing was changed. Disconnect Spotify first to connect a different account.",
    ),
    SpotifyAppRefused: ProblemType(
        409,
        "spotify-app-refused",
        "Spotify rejects your application",
        "It was deleted, or its secret has changed. Register it again at PUT /api/spotify/app.",
    ),
    SpotifyAppRequired: ProblemType(
        409,
        "spotify-app-required",
        "Connecting needs a Spotify application of your own",
        "Sign in, and register one at PUT /api/spotify/app. Then connect Spotify.",
    ),
    SpotifyNotConnected: ProblemType(
        409,
        "spotify-not-connected",
        "Spotify is not connected",
        "Send the person through GET /api/spotify/authorize first.",
    ),
    SpotifyOutcomeUnknown: ProblemType(
        409,
        "spotify-outcome-unknown",
        "Spotify did not respond",
        "The request was sent, so it may have taken effect. Check that before you send it again.",
    ),
    SpotifyReauthorizationRequired: ProblemType(
        409,
        "spotify-reauthorization-required",
        "Please reconnect Spotify",
        "Spotify has ended this app's access. Send the person to authorize_url.",
    ),
    TooManyTokens: ProblemType(
        409,
        "too-many-tokens",
        "There are too many tokens",
        "An account can have 20. Revoke one that is no longer used.",
    ),
    UsernameTaken: ProblemType(409, "username-taken", "This username is taken", "Choose another one."),
    PayloadTooLarge: ProblemType(413, "payload-too-large", "The body is too large", "Send at most 64 KiB."),
    UnsupportedMediaType: ProblemType(
        415,
        "unsupported-media-type",
        "This media type is not supported",
        "Send JSON with Content-Type: application/json.",
    ),
    ValidationError: ProblemType(
        422,
        "validation-error",
        "The request is invalid",
        "The member errors lists what is wrong with each field.",
    ),
    SpotifyAppNotAccepted: ProblemType(
        422,
        "spotify-app-refused",
        "Spotify rejects this application",
        "Nothing was changed. The member errors says what to correct.",
    ),
    SpotifyRateLimited: ProblemType(
        429,
        "spotify-rate-limited",
        "Spotify's rate limit is reached",
        "Try again after the number of seconds in Retry-After.",
    ),
    TooManyAttempts: ProblemType(
        429, "too-many-attempts", "Too many attempts", "Try again after the number of seconds in Retry-After."
    ),
    InternalError: ProblemType(
        500,
        "internal-error",
        "Something went wrong",
        "The log has the details under this request_id.",
    ),
    ServiceUnavailable: ProblemType(
        503, "service-unavailable", "The service is temporarily unavailable", "Please try again shortly."
    ),
    SpotifyMisconfigured: ProblemType(
        503,
        "spotify-misconfigured",
        "This server's Spotify application is misconfigured",
        "The operator has to correct the Spotify settings. The log says why.",
    ),
    SpotifyUnavailable: ProblemType(
        503,
        "spotify-unavailable",
        "Spotify is not responding properly",
        "The connection is unaffected. Try again shortly.",
    ),
}


def problem_type(kind: type[BacklineError]) -> ProblemType:
    """Return the problem type of a kind of error, or of the nearest of its base classes that has one."""
    return next(
        (PROBLEM_TYPES[base] for base in kind.__mro__ if base in PROBLEM_TYPES), PROBLEM_TYPES[InternalError]
    )
