"""Errors: one class per kind, one shape for all of them (RFC 9457), one place that makes it.

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

import json
import logging
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy.exc
from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
READ_AWAY_BYTES = 1024 * 1024
# So much of a body that nobody has read, and gunicorn gives up the connection without a word.
UNREAD_BYTES = 64 * 1024


class Problem(HTTPException):
    """An error the API answers with. `detail` is for the person who reads it; `members` for the program."""

    code: int
    slug: str
    title: str
    detail: str = ""
    retry_after: int | None = None

    def __init__(
        self, detail: str | None = None, *, retry_after: int | None = None, **members: object
    ) -> None:
        super().__init__()
        self.detail = self.detail if detail is None else detail
        self.retry_after = self.retry_after if retry_after is None else retry_after
        self.members = members


class MalformedRequest(Problem):
    code, slug, title = 400, "malformed-request", "The request could not be read"
    detail = "It does not follow HTTP, or does not belong to this host."


class UnsupportedMediaType(Problem):
    code, slug, title = (415, "unsupported-media-type", "The body's media type is not supported")
    detail = "Send JSON, with Content-Type: application/json."


class ValidationError(Problem):
    code, slug, title = 422, "validation-error", "The request is not valid"
    detail = "See errors for what is wrong with each field."


class PayloadTooLarge(Problem):
    code, slug, title = 413, "payload-too-large", "The body is too large"
    detail = "64 KiB is the most."


class NotFound(Problem):
    code, slug, title = 404, "not-found", "There is nothing here"
    detail = "See /api/docs for what there is."


class MethodNotAllowed(Problem):
    code, slug, title = 405, "method-not-allowed", "This method is not allowed here"
    detail = "The Allow header lists those that are."


class InternalError(Problem):
    code, slug, title = 500, "internal-error", "Something went wrong on our side"
    detail = "It has been logged under this request_id."


class ServiceUnavailable(Problem):
    code, slug, title = (503, "service-unavailable", "The service is unavailable for a moment")
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
    detail = "Send the session's cookie of a POST /api/login or /api/register."


class FreshSignInRequired(Problem):
    code, slug, title = 403, "fresh-sign-in-required", "Please confirm that it is you"
    detail = "Sign in again, or send current_password. A sign-in counts for this for 15 minutes."


class InvalidCredentials(Problem):
    code, slug, title = 401, "invalid-credentials", "The login or the password is wrong"
    detail = "The login is a user name or an e-mail address."


class TooManyAttempts(Problem):
    code, slug, title = 429, "too-many-attempts", "Too many attempts"
    detail = "Try again after Retry-After."
    retry_after = 60


class InvalidToken(Problem):
    code, slug, title = 400, "invalid-token", "This link is invalid or has expired"
    detail = "It may have been used already. Request another email."


class UsernameTaken(Problem):
    code, slug, title = 409, "username-taken", "This user name is taken"
    detail = "Choose another one."


class EmailTaken(Problem):
    code, slug, title = 409, "email-taken", "This e-mail address is taken"
    detail = "There is an account with it; sign in to that one."


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
    code, slug, title = 401, "spotify-access-denied", "Spotify did not give access"


class SpotifyStateMismatch(Problem):
    code, slug, title = (400, "spotify-state-mismatch", "This authorization does not belong here")
    detail = (
        "The state is missing, used, expired or another session's. Start again at GET /api/spotify/authorize."
    )


class SpotifyUnavailable(Problem):
    code, slug, title = (503, "spotify-unavailable", "Spotify does not answer properly at the moment")
    retry_after = 5


class SpotifyRateLimited(Problem):
    code, slug, title = 429, "spotify-rate-limited", "Spotify asks us to wait"
    detail = "Try again after Retry-After."
    retry_after = 30


class SpotifyMisconfigured(Problem):
    code, slug, title = (
        503,
        "spotify-misconfigured",
        "This server's Spotify application is not set up right",
    )
    retry_after = 300


class InsufficientScope(Problem):
    code, slug, title = (403, "insufficient-scope", "The Spotify permission for this was not granted")


# What the drivers of MySQL and Redis raise when the server is away, stalled or overrun.
DEPENDENCY_DOWN = (
    redis.RedisError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)

_BY_STATUS: dict[int, type[Problem]] = {
    400: MalformedRequest,
    404: NotFound,
    405: MethodNotAllowed,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
    422: ValidationError,
    500: InternalError,
    503: ServiceUnavailable,
}


def init_app(app: Flask) -> None:
    """Answer every error of the application in the one shape."""
    app.register_error_handler(HTTPException, respond)
    for kind in DEPENDENCY_DOWN:
        app.register_error_handler(kind, _dependency_down)


def respond(error: HTTPException) -> Response:
    """The answer for an error raised by us, by Flask or by a library of ours."""
    problem = as_problem(error)
    if problem.code == 413:
        _read_away()
    elif (request.content_length or 0) >= UNREAD_BYTES:
        request.max_content_length = READ_AWAY_BYTES
        with suppress(Exception):
            request.stream.read()
    answer = document(problem, request.environ)
    # 405 keeps its Allow; the shape's own two headers are ours.
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    if problem.code == 401:
        # RFC 9110 section 15.5.2 wants a challenge. Ours names no scheme a browser would ask a password for.
        answer.headers["WWW-Authenticate"] = 'Session realm="backline"'
    return answer


def as_problem(error: BaseException) -> Problem:
    """Which problem an error is."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, DEPENDENCY_DOWN):
        return ServiceUnavailable()
    if not isinstance(error, HTTPException):
        return InternalError()
    original = getattr(error, "original_exception", None)
    if original is not None:
        return as_problem(original)
    kind = _BY_STATUS.get(error.code or 500)
    if kind is None:
        kind = InternalError if (error.code or 500) >= 500 else MalformedRequest
    return kind(errors=_field_errors(error)) if kind is ValidationError else kind()


def request_id() -> str:
    """The current request's id: made here, never taken from outside, so that it cannot be forged."""
    return id_of(request.environ)


def document(problem: Problem, environ: "WSGIEnvironment") -> Response:
    """A problem's answer, also where there is no request any more."""
    body: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.code,
        "detail": problem.detail,
        "instance": Request(environ).path,
        "request_id": id_of(environ),
        **problem.members,
    }
    answer = Response(json.dumps(body), problem.code, content_type=MEDIA_TYPE)
    answer.headers["X-Request-ID"] = id_of(environ)
    if problem.retry_after is not None:
        answer.headers["Retry-After"] = str(problem.retry_after)
    return answer


def id_of(environ: "WSGIEnvironment") -> str:
    """The id of the request that has this environment."""
    found: str = environ.setdefault("backline.request_id", uuid.uuid4().hex)
    return found


def _read_away() -> None:
    """Read what is left of a body that is too large, within bounds.

    The server would close the connection on unread bytes, and the client lose its next request.
    """
    whole = request.content_length
    if whole is None:  # chunked; where the server marks the end, one may read up to it
        whole = READ_AWAY_BYTES if request.environ.get("wsgi.input_terminated") else 0
    left = min(whole, READ_AWAY_BYTES)
    stream = request.environ["wsgi.input"]
    with suppress(Exception):  # what is left may be broken as well; the answer stands
        while left > 0 and (chunk := stream.read(min(left, 65_536))):
            left -= len(chunk)


def _dependency_down(error: Exception) -> Response:
    log.error("dependency_unavailable", extra={"reason": type(error).__name__})
    return respond(ServiceUnavailable())


def _field_errors(error: HTTPException) -> dict[str, object]:
    """webargs' messages without the location they are filed under: field -> messages."""
    messages = (getattr(error, "data", None) or {}).get("messages", {})
    fields: dict[str, object] = {}
    for found in messages.values():
        fields |= found if isinstance(found, dict) else {"_schema": found}
    return fields
