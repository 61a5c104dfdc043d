"""Turns every error into a problem document (RFC 9457)."""

import json
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis
from flask import Flask, Request, Response, current_app, request
from werkzeug.exceptions import HTTPException

from app.errors import (
    DEPENDENCY_DOWN,
    BacklineError,
    InsufficientRights,
    InvalidBearerToken,
    ServiceUnavailable,
    ValidationError,
)
from app.infra.probes import reason_of
from app.web.paths import is_gateway
from app.web.problems import (
    MEDIA_TYPE,
    InternalError,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
    problem_type,
)
from app.web.spotify_error import spotify_error

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

MAX_DRAINED_BYTES = 1024 * 1024
# gunicorn silently closes a connection if this much of a body has not been read.
UNREAD_BYTES = 64 * 1024

_BY_STATUS: dict[int, type[BacklineError]] = {
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
    """Respond to every error in a view or a `before_request` function.

    `app.web.error_middleware` responds to the others.
    """
    app.register_error_handler(BacklineError, respond)
    app.register_error_handler(HTTPException, respond)
    app.register_error_handler(Exception, respond_to_failure)


def respond(error: Exception) -> Response:
    """Make the response for an error raised by the application, Flask, or a library."""
    known = known_error(error)
    if isinstance(known, ServiceUnavailable) and current_app.config["NAMES_DEPENDENCIES"]:
        known.detail = _name_dependency(known.__cause__ or error) or known.detail
    status = problem_type(type(known)).status
    if status == 413:
        _drain()
    elif (request.content_length or 0) >= UNREAD_BYTES:
        request.max_content_length = MAX_DRAINED_BYTES
        with suppress(Exception):
            request.stream.read()
    response = document(known, request.environ)
    # Keep headers such as Allow, but not those of the original body.
    for name, value in error.get_headers() if isinstance(error, HTTPException) else ():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    challenge = _challenge(known, status)
    if challenge is not None:
        response.headers["WWW-Authenticate"] = challenge
    return response


def _challenge(error: BacklineError, status: int) -> str | None:
    """Return how to authenticate (RFC 9110 section 15.5.2), or what is wrong with the token (RFC 6750)."""
    if isinstance(error, InvalidBearerToken):
        return 'Bearer error="invalid_token"'
    if isinstance(error, InsufficientRights):
        return 'Bearer error="insufficient_scope"'
    # No browser opens a password prompt for this scheme.
    return 'Session realm="backline"' if status == 401 else None


def respond_to_failure(error: Exception) -> Response:
    """Log an error that the application does not handle, and make the response for it."""
    log_failure(error)
    return respond(error)


def log_failure(error: Exception, **fields: object) -> None:
    """Log an error that the application does not handle. Outages of MySQL and Redis have no traceback."""
    if isinstance(error, DEPENDENCY_DOWN):
        log.error("dependency_unavailable", extra={"reason": reason_of(error), **fields})
    else:
        log.error("request_failed", exc_info=error, extra=fields)


def known_error(error: BaseException) -> BacklineError:
    """Return the `BacklineError` that an error is reported as."""
    if isinstance(error, BacklineError):
        return error
    if isinstance(error, DEPENDENCY_DOWN):
        return ServiceUnavailable()
    if not isinstance(error, HTTPException):
        return InternalError()
    kind = _BY_STATUS.get(error.code or 500)
    if kind is None:
        kind = InternalError if (error.code or 500) >= 500 else MalformedRequest
    return kind(errors=_field_errors(error)) if kind is ValidationError else kind()


def document(error: BacklineError, environ: "WSGIEnvironment") -> Response:
    """Make a problem document. Does not need a request context.

    Those of the gateway are also errors in Spotify's format, which its libraries read.
    """
    problem = problem_type(type(error))
    body: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": error.detail or problem.detail,
        "instance": Request(environ).path,
        "request_id": request_id_of(environ),
        **error.members,
    }
    if is_gateway(environ):
        body["error"] = spotify_error(body)
    response = Response(json.dumps(body), problem.status, content_type=MEDIA_TYPE)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def request_id() -> str:
    """Return the id of the current request. It is never taken from the client, so it cannot be forged."""
    return request_id_of(request.environ)


def request_id_of(environ: "WSGIEnvironment") -> str:
    """Return the id of the request that has this environment."""
    request_id: str | None = environ.get("backline.request_id")
    if request_id is None:
        # Unique, but no secret: os.urandom would let other threads run, and wait for them.
        request_id = environ["backline.request_id"] = f"{random.getrandbits(128):032x}"
    return request_id


def _name_dependency(error: BaseException) -> str | None:
    """Describe an outage to a developer. In production, only the log says this much."""
    if not isinstance(error, DEPENDENCY_DOWN):
        return None
    name = "Redis" if isinstance(error, redis.RedisError) else "The database"
    return f"{name} is not available ({type(error).__name__}). `flask doctor` says why."


def _drain() -> None:
    """Read the rest of a body that is too large, up to a limit.

    gunicorn closes a connection with unread bytes, and the client would lose its next request.
    """
    length = request.content_length
    if length is None:  # chunked: read to the end only if the server marks it
        length = MAX_DRAINED_BYTES if request.environ.get("wsgi.input_terminated") else 0
    left = min(length, MAX_DRAINED_BYTES)
    stream = request.environ["wsgi.input"]
    with suppress(Exception):  # the rest may be malformed too
        while left > 0 and (chunk := stream.read(min(left, 65_536))):
            left -= len(chunk)


def _field_errors(error: HTTPException) -> dict[str, object]:
    """Return webargs' messages by field, without the location that webargs groups them by."""
    messages = (getattr(error, "data", None) or {}).get("messages", {})
    fields: dict[str, object] = {}
    for errors in messages.values():
        fields |= errors if isinstance(errors, dict) else {"_schema": errors}
    return fields
