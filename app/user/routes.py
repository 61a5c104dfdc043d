import logging
from typing import Any

from flask import session

from app.auth.login import confirm_password, require_recent_login, reset_attempts, start_session
from app.auth.schemas import KnownPassword, PasswordChange, PasswordIfNeeded, ProfileChange
from app.errors import EmailTaken, FreshSignInRequired, InvalidCredentials, TooManyAttempts, UsernameTaken
from app.models import User, normalization
from app.services import services
from app.spotify import connections
from app.user import account
from app.user.export import everything_about
from app.user.schemas import ExportOut, SessionsOut, UserOut
from app.web import sessions
from app.web.access import login_required, require_user
from app.web.api import Blueprint

log = logging.getLogger(__name__)

blueprint = Blueprint("user", __name__, description="The signed-in person")

# Within an hour: trying names and addresses tells which are taken.
PROFILE_CHANGES = 30


@blueprint.get("/api/user")
@login_required
@blueprint.response(200, UserOut)
def get() -> User:
    """Who is signed in"""
    return require_user()


@blueprint.patch("/api/user")
@login_required
@blueprint.arguments(ProfileChange)
@blueprint.response(200, UserOut)
@blueprint.problems(InvalidCredentials, UsernameTaken, EmailTaken, TooManyAttempts)
def change(wanted: dict[str, str]) -> User:
    """Change the username or the email address

    A new address needs `current_password`. It replaces one that is not verified at once; a verified one is
    kept until the new one, `pending_email`, is verified with the link that is mailed to it. The verified
    address is mailed a link that undoes the change for seven days. Sending the current address cancels a
    change that is pending.
    """
    user = require_user()
    username, email = wanted.get("username", user.username), wanted.get("email")
    is_new = email is not None and user.email not in normalization.spellings(email)
    cancels = email is not None and not is_new and user.pending_email is not None
    if username != user.username or is_new or cancels:
        services().throttle.hit("profile-changes", str(user.id), limit=PROFILE_CHANGES)
    if is_new:
        confirm_password(user, wanted["current_password"])
    return account.change_profile(
        user,
        username=username if username != user.username else None,
        email=email if is_new or cancels else None,
    )


@blueprint.put("/api/user/password")
@login_required
@blueprint.arguments(PasswordChange)
@blueprint.response(204)
@blueprint.problems(InvalidCredentials, TooManyAttempts)
def change_password(chosen: dict[str, str]) -> None:
    """Choose a new password: this session gets a new id, all others end"""
    user = require_user()
    confirm_password(user, chosen["current_password"])
    changed = account.change_password(user, chosen["new_password"])
    sessions.end_others(user.id, connections.grant_of(user.id))
    start_session(changed)


@blueprint.delete("/api/user")
@login_required
@blueprint.arguments(KnownPassword)
@blueprint.response(204)
@blueprint.problems(InvalidCredentials, TooManyAttempts)
def delete(shown: dict[str, str]) -> None:
    """Delete the account: with the connection to Spotify, its tokens, and every session"""
    user = require_user()
    confirm_password(user, shown["password"])
    grant_id = connections.grant_of(user.id)
    account.delete_account(user)
    reset_attempts(user)
    sessions.end_others(user.id, grant_id)
    session.clear()


@blueprint.get("/api/user/sessions")
@login_required
@blueprint.response(200, SessionsOut)
def list_sessions() -> dict[str, Any]:
    """Where one is signed in, the session seen last first

    Includes sessions of visitors who use this account's Spotify connection, because they connected the same
    Spotify account without signing in.
    """
    user = require_user()
    return {"items": sessions.of_user(user.id, connections.grant_of(user.id))}


@blueprint.delete("/api/user/sessions")
@login_required
@blueprint.arguments(PasswordIfNeeded, required=False)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts)
def end_other_sessions(shown: dict[str, str]) -> None:
    """Sign out everywhere but here

    Needs a sign-in within the last 15 minutes, or `current_password`.
    """
    user = require_user()
    require_recent_login(user, shown.get("current_password"))
    ended = sessions.end_others(user.id, connections.grant_of(user.id))
    log.info("sessions_ended", extra={"ended": ended})


@blueprint.delete("/api/user/sessions/<string:session_id>")
@login_required
@blueprint.arguments(PasswordIfNeeded, required=False)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts)
def end_session(shown: dict[str, str], session_id: str) -> None:
    """End one session

    Another session than this one needs a sign-in within the last 15 minutes, or `current_password`. Also
    204 if there is none with this id: it has ended, or it never was one of this person's.
    """
    if sessions.is_own(session_id):
        log.info("signed_out")
        session.clear()
        return
    user = require_user()
    require_recent_login(user, shown.get("current_password"))
    if sessions.end_one(user.id, connections.grant_of(user.id), session_id):
        log.info("sessions_ended", extra={"ended": 1})


@blueprint.get("/api/user/export")
@login_required
@blueprint.response(200, ExportOut, headers={"Content-Disposition": {"schema": {"type": "string"}}})
def export() -> tuple[dict[str, Any], int, dict[str, str]]:
    """All personal data that is held, without tokens"""
    log.info("data_exported")
    name = 'attachment; filename="backline-export.json"'
    return everything_about(require_user()), 200, {"Content-Disposition": name}
