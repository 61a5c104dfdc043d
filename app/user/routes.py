import logging
from typing import Any

from flask import session

from app import sessions, throttle
from app.api import Blueprint
from app.auth.guard import require_user, signed_in
from app.auth.schemas import KnownPassword, PasswordChange, ProfileChange
from app.auth.sign_in import forget_failures, prove, sign_in
from app.models import User
from app.problems import EmailTaken, InvalidCredentials, TooManyAttempts, UsernameTaken, ValidationError
from app.user import account
from app.user.export import everything_about
from app.user.schemas import ExportOut, SessionsOut, UserOut

log = logging.getLogger(__name__)

blueprint = Blueprint("user", __name__, description="The signed-in person")

# Within an hour: trying names and addresses tells which are taken.
PROFILE_CHANGES = 30


@blueprint.get("/api/user")
@signed_in
@blueprint.response(200, UserOut)
def get() -> User:
    """Who is signed in"""
    return require_user()


@blueprint.patch("/api/user")
@signed_in
@blueprint.arguments(ProfileChange)
@blueprint.response(200, UserOut)
@blueprint.problems(InvalidCredentials, UsernameTaken, EmailTaken, TooManyAttempts)
def change(wanted: dict[str, str]) -> User:
    """Change name or address

    A new address needs `current_password`, counts as not verified, and is sent a mail; so is the old one.
    """
    user = require_user()
    username, email = wanted.get("username", user.username), wanted.get("email", user.email)
    if email != user.email and "current_password" not in wanted:
        raise ValidationError(errors={"current_password": ["A new address needs the password."]})
    if (username, email) != (user.username, user.email):
        throttle.count("profile-changes", str(user.id), most=PROFILE_CHANGES)
    if email != user.email:
        prove(user, wanted["current_password"])
    return account.change_profile(
        user,
        username=username if username != user.username else None,
        email=email if email != user.email else None,
    )


@blueprint.put("/api/user/password")
@signed_in
@blueprint.arguments(PasswordChange)
@blueprint.response(204)
@blueprint.problems(InvalidCredentials, TooManyAttempts)
def change_password(chosen: dict[str, str]) -> None:
    """Choose a new password: this session gets a new id, all others end"""
    user = require_user()
    prove(user, chosen["current_password"])
    changed = account.change_password(user, chosen["new_password"])
    sessions.end_others(user.id)
    sign_in(changed)


@blueprint.delete("/api/user")
@signed_in
@blueprint.arguments(KnownPassword)
@blueprint.response(204)
@blueprint.problems(InvalidCredentials, TooManyAttempts)
def delete(shown: dict[str, str]) -> None:
    """Delete the account: with the connection to Spotify, its tokens, and every session"""
    user = require_user()
    prove(user, shown["password"])
    account.erase(user)
    forget_failures(user)
    sessions.end_others(user.id)
    session.clear()


@blueprint.get("/api/user/sessions")
@signed_in
@blueprint.response(200, SessionsOut)
def list_sessions() -> dict[str, Any]:
    """Where one is signed in, the session seen last first"""
    return {"items": sessions.of_user(require_user().id)}


@blueprint.delete("/api/user/sessions")
@signed_in
@blueprint.response(204)
def end_other_sessions() -> None:
    """Sign out everywhere but here"""
    ended = sessions.end_others(require_user().id)
    log.info("sessions_ended", extra={"ended": ended})


@blueprint.delete("/api/user/sessions/<string:session_id>")
@signed_in
@blueprint.response(204)
def end_session(session_id: str) -> None:
    """End one session

    Also 204 where there is none with this id: it has ended, or never was one of this person's.
    """
    if sessions.is_own(session_id):
        log.info("signed_out")
        session.clear()
    elif sessions.end_one(require_user().id, session_id):
        log.info("sessions_ended", extra={"ended": 1})


@blueprint.get("/api/user/export")
@signed_in
@blueprint.response(200, ExportOut, headers={"Content-Disposition": {"schema": {"type": "string"}}})
def export() -> tuple[dict[str, Any], int, dict[str, str]]:
    """All personal data that is held, without tokens"""
    log.info("data_exported")
    name = 'attachment; filename="backline-export.json"'
    return everything_about(require_user()), 200, {"Content-Disposition": name}
