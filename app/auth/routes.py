"""Routes for registration, sessions, and links from emails."""

import logging
from typing import TYPE_CHECKING, Any

from flask import Response, request, session

from app.auth import lookup, registration
from app.auth.login import start_session
from app.auth.schemas import (
    Audience,
    Credentials,
    EmailChangeDecision,
    EmailOnly,
    JwtOut,
    NewPassword,
    Registration,
    SessionOut,
    TokenOnly,
    UserOut,
)
from app.errors import (
    EmailTaken,
    InvalidCredentials,
    InvalidToken,
    ServiceUnavailable,
    TooManyAttempts,
    UsernameTaken,
    ValidationError,
)
from app.infra.database import reading
from app.models import Purpose, Right, User
from app.models.snapshots import ConnectionSnapshot, UserSnapshot
from app.services import services
from app.settings.urls import origin_of
from app.spotify import connections
from app.spotify.schemas import describe
from app.spotify.session_connection import current_connection
from app.web import identity, sessions
from app.web.access import (
    accepts_bearer,
    current_user,
    login_required,
    public,
    read_user,
    require_user,
)
from app.web.api import Blueprint, encode_json, json_response
from app.web.client_address import client_network
from app.web.problems import NotFound
from app.web.validation import UNKNOWN_AUDIENCE

if TYPE_CHECKING:
    from app.auth.jwt_issuer import IssuedJwt

log = logging.getLogger(__name__)

blueprint = Blueprint("auth", __name__, description="Accounts and sessions")

_SESSION = SessionOut()

# From one address.
REGISTRATIONS_PER_HOUR, EMAIL_REQUESTS_PER_HOUR = 100, 50


@blueprint.post("/api/register")
@public
@blueprint.arguments(Registration)
@blueprint.response(201, UserOut, headers={"Location": {"schema": {"type": "string"}}})
@blueprint.problems(UsernameTaken, EmailTaken, TooManyAttempts)
def register(new: dict[str, str]) -> tuple[User, int, dict[str, str]]:
    """Create an account and sign in to it.

    If the visitor has connected Spotify, the connection moves to the account. An email asks them to confirm
    the address.
    """
    # First, because it fails without Redis. Otherwise, a 503 response could have created an account.
    services().throttle.hit("registrations", client_network(), limit=REGISTRATIONS_PER_HOUR)
    connection = None if current_user() else current_connection()
    user = registration.create_account(
        services().passwords,
        **new,
        anonymous_connection=(connection.id, connection.token.grant_id) if connection is not None else None,
    )
    start_session(user)
    log.info("registered")
    services().notifications.request_verification(user)
    return user, 201, {"Location": "/api/user"}


@blueprint.post("/api/login")
@public
@blueprint.arguments(Credentials)
@blueprint.response(200, UserOut)
@blueprint.problems(InvalidCredentials, TooManyAttempts)
def login(credentials: dict[str, str]) -> User:
    """Sign in with a username or an email address.

    After ten wrong passwords for one login from one address, each further one doubles the time to wait (429).
    """
    user = services().authenticator.authenticate(credentials["login"], credentials["password"])
    start_session(user)
    log.info("signed_in")
    return user


@blueprint.post("/api/logout")
@public
@blueprint.response(204)
def logout() -> None:
    """Sign out, which ends the session for good."""
    if current_user() is not None:
        log.info("signed_out")
    session.clear()


@blueprint.get("/api/session")
@public
@accepts_bearer(*Right)
@blueprint.response(200, SessionOut)
def get_session() -> Response:
    """Return who is signed in, and their connection to Spotify.

    Apps call this first. A visitor who is not signed in gets a 200 response too. For a bearer token, `user`
    is null without the right `account:read`, and `spotify` without `spotify:read`.
    """
    user, connection = current_user(), current_connection()
    if user is None and connection is None:
        return json_response(_describe_session(None, None))
    return json_response(identity.remembered_body("session", lambda: _describe_session(user, connection)))


@blueprint.post("/api/session/jwt")
@login_required
@blueprint.arguments(Audience)
@blueprint.response(200, JwtOut)
@blueprint.problems(NotFound)
def issue_jwt(requested: dict[str, str]) -> "IssuedJwt":
    """Return a JWT that tells another service of the app who the user is.

    It is valid for five minutes and for one audience, one of `JWT_AUDIENCES`. Services verify it with the
    keys at `/.well-known/jwks.json`. This API does not accept it. Available only if `JWT_SIGNING_KEYS` and
    `JWT_AUDIENCES` are set.
    """
    issuer, audience = services().jwt_issuer, requested["audience"]
    if issuer is None:
        raise NotFound("JWT_SIGNING_KEYS is not set on this server.")
    if audience not in issuer.audiences:
        raise ValidationError(errors={"audience": [UNKNOWN_AUDIENCE]})
    own_origin = origin_of(f"{request.scheme}://{request.host}")
    issued = issuer.issue(require_user().id, audience, issuer=own_origin)
    log.info("jwt_issued", extra={"audience": audience})
    return issued


@blueprint.post("/api/password-reset")
@public
@blueprint.arguments(EmailOnly)
@blueprint.response(202)
@blueprint.problems(TooManyAttempts)
def ask_for_password_reset(requested: dict[str, str]) -> Response:
    """Send an email with a link to choose a new password.

    The response, and the time it takes, do not depend on whether there is such an account.
    """
    _require_email()
    address = requested["email"]
    services().throttle.hit("mail-requests", client_network(), limit=EMAIL_REQUESTS_PER_HOUR)
    with reading() as db:
        user = lookup.by_email(db, address)
    log.info("password_reset_requested", extra={"account": user.id if user else None})
    if services().notifications.is_within_limit(address, Purpose.PASSWORD_RESET):
        services().notifications.send_password_reset(address)
    return Response(status=202)


@blueprint.put("/api/password-reset")
@public
@blueprint.arguments(NewPassword)
@blueprint.response(204)
@blueprint.problems(InvalidToken)
def reset_password(new: dict[str, str]) -> None:
    """Choose a new password with the token from the email. All sessions end."""
    sessions.require_store()
    user = services().password_changes.reset(new["token"], new["password"])
    _end_all_sessions(user)


@blueprint.post("/api/email-verification")
@login_required
@blueprint.response(202)
@blueprint.problems(TooManyAttempts)
def ask_for_email_verification() -> Response:
    """Send another email that verifies the address, or the pending address if there is one."""
    _require_email()
    user = read_user()
    if user.email_to_verify is not None:
        services().notifications.count(user.email_to_verify, Purpose.EMAIL_VERIFICATION)
        services().notifications.send_verification(user)
    return Response(status=202)


@blueprint.put("/api/email-verification")
@public
@blueprint.arguments(TokenOnly)
@blueprint.response(204)
@blueprint.problems(InvalidToken, EmailTaken)
def verify_email(shown: dict[str, str]) -> None:
    """Verify an address with the token from the email.

    If it is the `pending_email`, it replaces the current address.
    """
    services().email_changes.verify(shown["token"])


@blueprint.put("/api/email-change")
@public
@blueprint.arguments(EmailChangeDecision)
@blueprint.response(204)
@blueprint.problems(InvalidToken, EmailTaken)
def decide_email_change(decision: dict[str, str]) -> None:
    """Undo a change of address with the token from the email to the old address.

    Restores that address and ends all sessions. The password no longer works; the address is sent a link to
    choose a new one.
    """
    sessions.require_store()
    user = services().email_changes.undo(decision["token"])
    _end_all_sessions(user)


def _describe_session(user: UserSnapshot | None, connection: ConnectionSnapshot | None) -> bytes:
    token = identity.current_token()
    rights = Right if token is None else token.rights.split()
    session = {
        "authenticated": user is not None,
        "user": user if Right.ACCOUNT_READ in rights else None,
        "spotify": _describe_connection(connection) if Right.SPOTIFY_READ in rights else None,
    }
    offered = {"spotify_sign_in": True} if services().config.spotify_sign_in else {}
    return encode_json(_SESSION, session | offered)


def _describe_connection(connection: ConnectionSnapshot | None) -> dict[str, Any] | None:
    if connection is None:
        return None
    return describe(connection, is_usable=services().applications.can_use(connection.token))


def _end_all_sessions(user: User) -> None:
    """End all sessions of a user who has proved by email who they are, including this one."""
    services().authenticator.reset_attempts(user)
    sessions.end_all(user.id, connections.grant_of(user.id))
    session.clear()


def _require_email() -> None:
    if not services().mailer.is_configured:
        raise ServiceUnavailable("This server is not configured to send email.")
