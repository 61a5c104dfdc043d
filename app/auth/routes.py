from typing import Any

import sqlalchemy as sa
from flask import g, session

from app import sessions
from app.api import Blueprint
from app.auth import names, passwords
from app.auth.guard import current_user, open_to_all
from app.auth.registration import create_account
from app.auth.schemas import Credentials, Registration, SessionOut
from app.database import reading, writing
from app.models import SpotifyUser, User
from app.problems import InvalidCredentials
from app.spotify import links
from app.spotify.schemas import describe
from app.user.schemas import UserOut

blueprint = Blueprint("auth", __name__, description="Accounts and sessions")


@blueprint.post("/api/register")
@open_to_all
@blueprint.arguments(Registration)
@blueprint.response(201, UserOut, headers={"Location": {"schema": {"type": "string"}}})
@blueprint.problems(400, 403, 409, 413, 415, 422, 503)
def register(new: dict[str, str]) -> tuple[User, int, dict[str, str]]:
    """Make an account and sign in to it

    A Spotify connection that this visitor made before moves to the account.
    """
    sessions.require_store()  # or there would be an account, and its maker told that there is none
    user, link_id = create_account(**new, visitors_link_id=session.get("spotify_user_id"))
    _sign_in(user, link_id)
    return user, 201, {"Location": "/api/user"}


@blueprint.post("/api/login")
@open_to_all
@blueprint.arguments(Credentials)
@blueprint.response(200, UserOut)
@blueprint.problems(400, 401, 403, 413, 415, 422, 503)
def login(credentials: dict[str, str]) -> User:
    """Sign in, with user name or e-mail address"""
    wanted = names.normal_form(credentials["login"])
    with reading() as db:
        user = db.scalar(sa.select(User).where(sa.or_(User.username == wanted, User.email == wanted)))
        link_id = db.scalar(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user.id)) if user else None
    if not passwords.matches(user.password_hash if user else None, credentials["password"]) or user is None:
        raise InvalidCredentials
    if passwords.is_outdated(user.password_hash):
        _rehash(user, credentials["password"])
    _sign_in(user, link_id)
    return user


@blueprint.post("/api/logout")
@open_to_all
@blueprint.response(204)
@blueprint.problems(403, 503)
def logout() -> None:
    """Sign out: the session is gone for good"""
    session.clear()


@blueprint.get("/api/session")
@open_to_all
@blueprint.response(200, SessionOut)
@blueprint.problems(503)
def get_session() -> dict[str, Any]:
    """Who is here: an app's first call, and never an error for a stranger"""
    user, link = current_user(), links.current_link()
    return {
        "authenticated": user is not None,
        "user": user,
        "spotify": describe(link) if link is not None else None,
    }


def _sign_in(user: User, link_id: int | None) -> None:
    """Begin a session of this user's, under a new id: one planted earlier must not become signed in."""
    sessions.renew()
    session["user_id"] = user.id
    if link_id is not None:
        session["spotify_user_id"] = link_id
    g.user = user
    links.look_again()


def _rehash(user: User, password: str) -> None:
    """Store the password with today's parameters, unless it was changed meanwhile."""
    with writing() as db:
        db.execute(
            sa.update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=passwords.hash_password(password))
        )
