import logging
from typing import Any

from flask import Response, session

from app.auth import lookup, registration
from app.auth.login import authenticate, reset_attempts, start_session
from app.auth.schemas import (
    Credentials,
    EmailChangeDecision,
    EmailOnly,
    NewPassword,
    Registration,
    SessionOut,
    TokenOnly,
)
from app.errors import (
    EmailTaken,
    InvalidCredentials,
    InvalidToken,
    ServiceUnavailable,
    TooManyAttempts,
    UsernameTaken,
)
from app.infra.database import reading
from app.models import Purpose, User
from app.services import services
from app.spotify import connections
from app.spotify.schemas import describe
from app.user import account, email_change, notifications
from app.user.schemas import UserOut
from app.web import sessions
from app.web.access import current_user, login_required, public, require_user
from app.web.api import Blueprint
from app.web.client_address import client_network

log = logging.getLogger(__name__)

blueprint = Blueprint("auth", __name__, description="Accounts and sessions")

# Within an hour, from one address: accounts made, and mails asked for.
REGISTRATIONS, MAIL_REQUESTS = 100, 50


@blueprint.post("/api/register")
@public
@blueprint.arguments(Registration)
@blueprint.response(201, UserOut, headers={"Location": {"schema": {"type": "string"}}})
@blueprint.problems(UsernameTaken, EmailTaken, TooManyAttempts)
def register(new: dict[str, str]) -> tuple[User, int, dict[str, str]]:
    """Make an account and sign in to it

    A Spotify connection that this visitor made before moves to the account. A mail asks whether the
    address is theirs.
    """
    # First, because it fails without Redis: otherwise an account would exist although the response is 503.
    services().throttle.hit("registrations", client_network(), limit=REGISTRATIONS)
    link = None if current_user() else connections.current_connection()
    visitors_connection = (link.id, link.token.grant_id) if link is not None else None
    user = registration.create_account(**new, visitors_connection=visitors_connection)
    start_session(user)
    log.info("registered")
    notifications.ask_to_verify(user)
    return user, 201, {"Location": "/api/user"}


@blueprint.post("/api/login")
@public
@blueprint.arguments(Credentials)
@blueprint.response(200, UserOut)
@blueprint.problems(InvalidCredentials, TooManyAttempts)
def login(credentials: dict[str, str]) -> User:
    """Sign in with a username or an email address

    Ten wrong passwords for one login from one address are free, then each doubles a wait (429).
    """
    user = authenticate(credentials["login"], credentials["password"])
    start_session(user)
    log.info("signed_in")
    return user


@blueprint.post("/api/logout")
@public
@blueprint.response(204)
def logout() -> None:
    """Sign out: the session is gone for good"""
    if current_user() is not None:
        log.info("signed_out")
    session.clear()


@blueprint.get("/api/session")
@public
@blueprint.response(200, SessionOut)
def get_session() -> dict[str, Any]:
    """Who is here: an app's first call, and never an error for a stranger"""
    user, link = current_user(), connections.current_connection()
    return {
        "authenticated": user is not None,
        "user": user,
        "spotify": describe(link) if link is not None else None,
    }


@blueprint.post("/api/password-reset")
@public
@blueprint.arguments(EmailOnly)
@blueprint.response(202)
@blueprint.problems(TooManyAttempts)
def ask_for_password_reset(wanted: dict[str, str]) -> Response:
    """Have a mail sent with which a new password can be chosen

    Answers the same, in the same time, whether or not there is such an account.
    """
    _require_mail()
    address = wanted["email"]
    services().throttle.hit("mail-requests", client_network(), limit=MAIL_REQUESTS)
    with reading() as db:
        user = lookup.by_email(db, address)
    log.info("password_reset_requested", extra={"account": user.id if user else None})
    if notifications.may_be_mailed(address, Purpose.PASSWORD_RESET):
        notifications.mail_password_reset(address)
    return Response(status=202)


@blueprint.put("/api/password-reset")
@public
@blueprint.arguments(NewPassword)
@blueprint.response(204)
@blueprint.problems(InvalidToken)
def reset_password(chosen: dict[str, str]) -> None:
    """Choose a new password with the token from the mail: all sessions end"""
    sessions.require_store()
    user = account.reset_password(chosen["token"], chosen["password"])
    reset_attempts(user)
    sessions.end_all(user.id, connections.grant_of(user.id))
    session.clear()


@blueprint.post("/api/email-verification")
@login_required
@blueprint.response(202)
@blueprint.problems(TooManyAttempts)
def ask_for_email_verification() -> Response:
    """Request another email that verifies the address, or the one that is to replace it"""
    _require_mail()
    user = require_user()
    if user.email_to_verify is not None:
        notifications.count_mail(user.email_to_verify, Purpose.EMAIL_VERIFICATION)
        notifications.mail_verification(user)
    return Response(status=202)


@blueprint.put("/api/email-verification")
@public
@blueprint.arguments(TokenOnly)
@blueprint.response(204)
@blueprint.problems(InvalidToken, EmailTaken)
def verify_email(shown: dict[str, str]) -> None:
    """Verify an address with the token from the email

    If it is the `pending_email`, it replaces the current address.
    """
    email_change.verify(shown["token"])


@blueprint.put("/api/email-change")
@public
@blueprint.arguments(EmailChangeDecision)
@blueprint.response(204)
@blueprint.problems(InvalidToken, EmailTaken)
def decide_email_change(decision: dict[str, str]) -> None:
    """Undo a change of address with the token from the email to the old address

    Restores that address and ends all sessions. The password no longer works; the address is sent a link to
    choose a new one.
    """
    sessions.require_store()
    user = email_change.undo(decision["token"])
    reset_attempts(user)
    sessions.end_all(user.id, connections.grant_of(user.id))
    session.clear()


def _require_mail() -> None:
    if not services().mailer.is_configured:
        raise ServiceUnavailable("This server is not configured to send email.")
