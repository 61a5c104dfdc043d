"""Routes for the signed-in user."""

import logging
from datetime import timedelta
from typing import Any

from flask import Response, session

from app.auth import personal_access_tokens
from app.auth.login import start_session
from app.auth.schemas import UserOut
from app.errors import (
    EmailTaken,
    FreshSignInRequired,
    InvalidCredentials,
    TooManyAttempts,
    TooManyTokens,
    UsernameTaken,
)
from app.models import Right, User, normalization
from app.services import services
from app.spotify import connections
from app.user.export import collect_personal_data
from app.user.schemas import (
    CreatedTokenOut,
    ExportOut,
    KnownPassword,
    NewToken,
    PasswordChange,
    PasswordIfNeeded,
    PersonalAccessTokensOut,
    ProfileChange,
    SessionsOut,
    describe_created,
    describe_export,
)
from app.web import identity, sessions
from app.web.access import accepts_bearer, login_required, read_user, require_user
from app.web.api import Blueprint, encode_json, json_response

log = logging.getLogger(__name__)

blueprint = Blueprint("user", __name__, description="The signed-in user")

_USER = UserOut()

# For one user: trying names and addresses reveals which are taken.
PROFILE_CHANGES_PER_HOUR = 30
# For one user: each new token is an email.
TOKENS_PER_HOUR = 60


@blueprint.get("/api/user")
@login_required
@accepts_bearer(Right.ACCOUNT_READ)
@blueprint.response(200, UserOut)
def get() -> Response:
    """Return the signed-in user."""
    user = require_user()
    return json_response(identity.remembered_body("user", lambda: encode_json(_USER, user)))


@blueprint.patch("/api/user")
@login_required
@blueprint.arguments(ProfileChange)
@blueprint.response(200, UserOut)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, UsernameTaken, EmailTaken, TooManyAttempts)
def change(requested: dict[str, str]) -> User:
    """Change the username or the email address.

    A new address needs `current_password` or, if the account has no password, a sign-in within the last 15
    minutes. It replaces an unverified address at once. A verified address
    stays until the new one, `pending_email`, is verified with the link that is sent to it. The old address
    gets a link that undoes the change within seven days. The current address cancels a pending change.
    """
    user = read_user()
    username, email = requested.get("username", user.username), requested.get("email")
    is_new_email = email is not None and user.email not in normalization.spellings(email)
    cancels = email is not None and not is_new_email and user.pending_email is not None
    if username != user.username or is_new_email or cancels:
        services().throttle.hit("profile-changes", str(user.id), limit=PROFILE_CHANGES_PER_HOUR)
    if is_new_email:
        services().authenticator.confirm_owner(user, requested.get("current_password"))
    return services().user_accounts.change_profile(
        user,
        username=username if username != user.username else None,
        email=email if is_new_email or cancels else None,
    )


@blueprint.put("/api/user/password")
@login_required
@blueprint.arguments(PasswordChange)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts)
def change_password(requested: dict[str, str]) -> None:
    """Change the password. This session gets a new id, and all others end.

    If the account has no password, needs a sign-in within the last 15 minutes instead.
    """
    user = read_user()
    services().authenticator.confirm_owner(user, requested.get("current_password"))
    changed = services().password_changes.change(user, requested["new_password"])
    sessions.end_others(user.id, connections.grant_of(user.id))
    start_session(changed)


@blueprint.delete("/api/user")
@login_required
@blueprint.arguments(KnownPassword)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts)
def delete(shown: dict[str, str]) -> None:
    """Delete the account, its connection to Spotify with all tokens, and all sessions.

    If the account has no password, needs a sign-in within the last 15 minutes instead.
    """
    user = read_user()
    services().authenticator.confirm_owner(user, shown.get("password"))
    grant_id = connections.grant_of(user.id)
    services().user_accounts.delete(user)
    services().authenticator.reset_attempts(user)
    sessions.end_others(user.id, grant_id)
    session.clear()


@blueprint.get("/api/user/sessions")
@login_required
@blueprint.response(200, SessionsOut)
def list_sessions() -> dict[str, Any]:
    """List the sessions of the user, most recently used first.

    Includes sessions of visitors who have connected the same Spotify account without signing in.
    """
    user = require_user()
    return {"items": sessions.of_user(user.id, connections.grant_of(user.id))}


@blueprint.delete("/api/user/sessions")
@login_required
@blueprint.arguments(PasswordIfNeeded, required=False)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts)
def end_other_sessions(shown: dict[str, str]) -> None:
    """End all sessions except this one, which gets a new id, and revoke all personal access tokens.

    Needs a sign-in within the last 15 minutes, or `current_password`.
    """
    user = read_user()
    services().authenticator.require_recent_login(user, shown.get("current_password"))
    changed = services().user_accounts.end_sessions(user)
    ended = sessions.end_others(user.id, connections.grant_of(user.id))
    start_session(changed, signed_in_at=session["signed_in_at"])
    log.info("sessions_ended", extra={"ended": ended})


@blueprint.delete("/api/user/sessions/<string:session_id>")
@login_required
@blueprint.arguments(PasswordIfNeeded, required=False)
@blueprint.response(204)
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts)
def end_session(shown: dict[str, str], session_id: str) -> None:
    """End one session.

    Ending a session other than this one needs a sign-in within the last 15 minutes, or `current_password`.
    If the user has no session with this id, the response is 204 too.
    """
    if sessions.is_own(session_id):
        log.info("signed_out")
        session.clear()
        return
    user = read_user()
    services().authenticator.require_recent_login(user, shown.get("current_password"))
    if sessions.end_one(user.id, connections.grant_of(user.id), session_id):
        log.info("sessions_ended", extra={"ended": 1})


@blueprint.get("/api/user/tokens")
@login_required
@blueprint.response(200, PersonalAccessTokensOut)
def list_tokens() -> dict[str, Any]:
    """List the user's personal access tokens, newest first."""
    user = require_user()
    return {"items": personal_access_tokens.list_tokens(user.id, user.session_epoch)}


@blueprint.post("/api/user/tokens")
@login_required
@blueprint.arguments(NewToken)
@blueprint.response(201, CreatedTokenOut, headers={"Location": {"schema": {"type": "string"}}})
@blueprint.problems(FreshSignInRequired, InvalidCredentials, TooManyAttempts, TooManyTokens)
def create_token(requested: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Create a personal access token, for a client other than a browser.

    Needs `current_password` or, if the account has no password, a sign-in within the last 15 minutes. The
    response is the only one that contains the token. A change of the password revokes it.
    """
    user = read_user()
    services().throttle.hit("token-creations", str(user.id), limit=TOKENS_PER_HOUR)
    services().authenticator.confirm_owner(user, requested.get("current_password"))
    created = services().personal_access_tokens.create(
        user.id,
        user.session_epoch,
        name=requested["name"],
        rights=[Right(right) for right in requested["rights"]],
        lifetime=timedelta(days=requested["expires_in_days"]),
    )
    location = {"Location": f"/api/user/tokens/{created.row.id}"}
    return describe_created(created), 201, location


@blueprint.delete("/api/user/tokens/<int:token_id>")
@login_required
@blueprint.response(204)
def revoke_token(token_id: int) -> None:
    """Revoke a personal access token.

    If the user has no token with this id, the response is 204 too.
    """
    personal_access_tokens.revoke(require_user().id, token_id)


@blueprint.get("/api/user/export")
@login_required
@blueprint.response(200, ExportOut, headers={"Content-Disposition": {"schema": {"type": "string"}}})
def export() -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return all personal data that is stored about the user, without tokens."""
    log.info("data_exported")
    headers = {"Content-Disposition": 'attachment; filename="backline-export.json"'}
    return describe_export(collect_personal_data(read_user())), 200, headers
