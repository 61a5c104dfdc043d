"""Access rules: bearer tokens, scopes, and the headers that all responses share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from flask import Blueprint, Response, g, jsonify, request

from sandbox.api.errors import ApiError
from sandbox.applications import DEVELOPMENT
from sandbox.context import sandbox
from sandbox.fault_responses import challenge, error_members, fixed_response
from sandbox.grants import AccessToken
from sandbox.people import Person
from sandbox.state import Sandbox

api = Blueprint("api", __name__, url_prefix="/v1")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ONE_WORDING = "Missing/invalid/expired access token"


@api.errorhandler(ApiError)
def respond_to_error(error: ApiError) -> Response:
    """Return the error as JSON, as the Web API does."""
    response = jsonify(error=error_members(error.status, error.message, error.reason))
    response.status_code = error.status
    if error.challenge:
        response.headers["WWW-Authenticate"] = error.challenge
    return response


@api.after_request
def add_headers(response: Response) -> Response:
    """Allow all origins and disable caching. There is no ETag and no rate-limit header."""
    response.headers["Cache-Control"] = "private, max-age=0"
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
    response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, DELETE"
    return response


@api.before_request
def check_bearer() -> Response | None:
    """Require a live access token on every path, including paths that do not exist.

    Raises:
        ApiError: 401, if the token is missing, unknown, or expired.
    """
    if request.method == "OPTIONS":
        return None
    header = request.headers.get("Authorization")
    if header is None:
        raise _unauthorized("missing_token", "No token provided")
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        raise ApiError(400, "Only valid bearer authentication supported")
    state = sandbox()
    token = state.grants.access_tokens.get(value)
    if token is None:
        raise _unauthorized("invalid_token", "Invalid access token")
    if not token.is_live(state.clock.now()):
        raise _unauthorized("invalid_token", "The access token expired")
    g.token = token
    return _check_application(state, token)


def _check_application(state: Sandbox, token: AccessToken) -> Response | None:
    """Return the 403 for people whom the application does not serve, and for everyone if its owner is free.

    Raises:
        ApiError: 401, if the application was deleted.
    """
    application = state.applications.get(token.grant.client_id)
    if application is None:
        raise _unauthorized("invalid_token", "Invalid access token")
    owner = state.people.of_account(application.owner)
    if application.quota == DEVELOPMENT and owner and not owner.premium:
        return fixed_response("owner_not_premium")
    person = state.people.of_account(token.grant.person)
    if person and not application.allows(person):
        return fixed_response("not_registered_2026")
    return None


def _unauthorized(error: str, description: str) -> ApiError:
    old = sandbox().settings.unauthorized_wording == "old"
    return ApiError(401, description if old else _ONE_WORDING, challenge=challenge(error, description))


def granted(*scopes: str) -> bool:
    """Return whether the token has at least one of the scopes."""
    token: AccessToken = g.token
    return any(scope in token.grant.scopes for scope in scopes)


def needs(
    *scopes: str, player_read: bool = False
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Declare that a view needs one of the scopes.

    Without one, reads of the player return a 401 that no refresh can fix, and everything else a 403.
    """

    def decorate(view: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(view)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            if not granted(*scopes):
                if player_read:
                    raise ApiError(
                        401,
                        "Permissions missing",
                        challenge=challenge("invalid_token", "Permissions missing"),
                    )
                raise ApiError(403, "Insufficient client scope")
            return view(*args, **kwargs)

        return checked

    return decorate


def caller() -> Person:
    """Return the person whom the token acts for.

    Raises:
        ApiError: 401, if the token came from client credentials.
    """
    token: AccessToken = g.token
    person = sandbox().people.of_account(token.grant.person)
    if person is None:
        raise ApiError(401, "Unauthorized.")
    return person
