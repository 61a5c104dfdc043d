"""Requests and errors of the OAuth endpoints: form bodies, and OAuth's own error format (RFC 6749)."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec
from urllib.parse import parse_qsl

import msgspec
from flask import Request, Response
from werkzeug.exceptions import HTTPException

from app.auth.devices.errors import OAuthError
from app.errors import BacklineError
from app.web import error_handlers
from app.web.api import MAX_BODY_BYTES, read_body

FORM = "application/x-www-form-urlencoded"
_MAX_PARAMETERS = 100

Parameters = ParamSpec("Parameters")


def read_form(request: Request, *names: str) -> dict[str, str]:
    """Return these parameters of a form body. Others are ignored, and so is the query.

    A parameter without a value counts as left out (RFC 6749 section 3.2).

    Raises:
        OAuthError: The body is not a form, or one of the parameters is repeated.
        PayloadTooLarge: The body is too large.
        MalformedRequest: Its transfer coding is malformed.
    """
    body = read_body(request, MAX_BODY_BYTES)
    if request.mimetype != FORM:
        raise OAuthError("invalid_request", f"Send the parameters with Content-Type: {FORM}.")
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError:  # not UTF-8, or too many parameters
        raise OAuthError("invalid_request", "The body is not a valid form in UTF-8.") from None
    known = [(name, value) for name, value in pairs if name in names]
    found = dict(known)
    if len(found) != len(known):
        raise OAuthError("invalid_request", "A parameter must not be repeated.")
    return {name: value for name, value in found.items() if value}


def oauth_errors(view: Callable[Parameters, object]) -> Callable[Parameters, object]:
    """Report every error of a view in OAuth's format (RFC 6749 section 5.2)."""

    @wraps(view)
    def respond_to_errors(*arguments: Parameters.args, **options: Parameters.kwargs) -> object:
        try:
            return view(*arguments, **options)
        except OAuthError as error:
            return _response(Response(status=400), error.code, error.description)
        except (BacklineError, HTTPException) as error:
            return _translate(error_handlers.respond(error))
        except Exception as error:  # noqa: BLE001 - as the error handler of other routes does
            return _translate(error_handlers.respond_to_failure(error))

    respond_to_errors.has_oauth_errors = True  # type: ignore[attr-defined]  # for the OpenAPI document
    return respond_to_errors


def _translate(problem: Response) -> Response:
    """Turn a problem document into an OAuth error with the same status and headers."""
    if problem.status_code in (429, 503):
        code = "temporarily_unavailable"
    else:
        code = "server_error" if problem.status_code >= 500 else "invalid_request"
    return _response(problem, code, problem.get_json()["detail"])


def _response(response: Response, code: str, description: str) -> Response:
    response.set_data(msgspec.json.encode({"error": code, "error_description": description}))
    response.content_type = "application/json"
    return response
