"""Responses to errors: one format for all of them (RFC 9457), whoever raises them."""

import json
import logging
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException

from app.errors import DEPENDENCY_DOWN, BacklineError, ServiceUnavailable, ValidationError
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

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

READ_AWAY_BYTES = 1024 * 1024
# gunicorn silently closes a connection with this much of a body left unread.
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
    """Respond to every error of the application with a problem document."""
    app.register_error_handler(BacklineError, respond)
    app.register_error_handler(HTTPException, respond)
    for kind in DEPENDENCY_DOWN:
        app.register_error_handler(kind, _dependency_down)


def respond(error: Exception) -> Response:
    """Make the response for an error raised by the application, Flask, or a library."""
    known = known_error(error)
    status = problem_type(type(known)).status
    if status == 413:
        _read_away()
    elif (request.content_length or 0) >= UNREAD_BYTES:
        request.max_content_length = READ_AWAY_BYTES
        with suppress(Exception):
            request.stream.read()
    answer = document(known, request.environ)
    # Keep headers such as Allow, but not those of the original body.
    for name, value in error.get_headers() if isinstance(error, HTTPException) else ():
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    if status == 401:
        # RFC 9110 section 15.5.2 requires a challenge. This scheme makes no browser ask for a password.
        answer.headers["WWW-Authenticate"] = 'Session realm="backline"'
    return answer


def known_error(error: BaseException) -> BacklineError:
    """Return the error of ours that an error is reported as."""
    if isinstance(error, BacklineError):
        return error
    if isinstance(error, DEPENDENCY_DOWN):
        return ServiceUnavailable()
    if not isinstance(error, HTTPException):
        return InternalError()
    original = getattr(error, "original_exception", None)
    if original is not None:
        return known_error(original)
    kind = _BY_STATUS.get(error.code or 500)
    if kind is None:
        kind = InternalError if (error.code or 500) >= 500 else MalformedRequest
    return kind(errors=_field_errors(error)) if kind is ValidationError else kind()


def request_id() -> str:
    """Return the id of the current request. It is never taken from the client, so it cannot be forged."""
    return id_of(request.environ)


def document(error: BacklineError, environ: "WSGIEnvironment") -> Response:
    """Make the response for an error, also outside of a request."""
    problem = problem_type(type(error))
    body: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": error.detail or problem.detail,
        "instance": Request(environ).path,
        "request_id": id_of(environ),
        **error.members,
    }
    answer = Response(json.dumps(body), problem.status, content_type=MEDIA_TYPE)
    answer.headers["X-Request-ID"] = id_of(environ)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


def id_of(environ: "WSGIEnvironment") -> str:
    """Return the id of the request that has this environment."""
    found: str = environ.setdefault("backline.request_id", uuid.uuid4().hex)
    return found


def _read_away() -> None:
    """Read the rest of a body that is too large, within limits.

    gunicorn closes a connection with unread bytes, and the client would lose its next request.
    """
    whole = request.content_length
    if whole is None:  # chunked: read up to the end only if the server marks it
        whole = READ_AWAY_BYTES if request.environ.get("wsgi.input_terminated") else 0
    left = min(whole, READ_AWAY_BYTES)
    stream = request.environ["wsgi.input"]
    with suppress(Exception):  # the rest may be broken too
        while left > 0 and (chunk := stream.read(min(left, 65_536))):
            left -= len(chunk)


def _dependency_down(error: Exception) -> Response:
    log.error("dependency_unavailable", extra={"reason": type(error).__name__})
    return respond(ServiceUnavailable())


def _field_errors(error: HTTPException) -> dict[str, object]:
    """Return webargs' messages by field, without the location that they are filed under."""
    messages = (getattr(error, "data", None) or {}).get("messages", {})
    fields: dict[str, object] = {}
    for found in messages.values():
        fields |= found if isinstance(found, dict) else {"_schema": found}
    return fields
