"""Proving who one is, and beginning a session. Every password that is looked at is looked at here."""

import logging

import sqlalchemy as sa
from flask import g, session

from app.auth import lookup, passwords
from app.errors import FreshSignInRequired, InvalidCredentials
from app.infra.clock import utc_now
from app.infra.database import reading, writing
from app.models import User, normalization
from app.spotify import connections
from app.web import sessions, throttle

log = logging.getLogger(__name__)


def authenticate(login: str, password: str) -> User:
    """Return the user with this login, which is a username or an email address, and this password.

    An unknown login costs the same work, is counted the same, and gets the same response, so that no one
    can tell whether there is such an account.

    Raises:
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    with throttle.attempt(normalization.login_form(login)):
        with reading() as db:
            found = lookup.by_login(db, login)
        user, match = _with_password(found, password)
    if match is passwords.Match.AS_TYPED or passwords.needs_rehash(user.password_hash):
        _rehash(user, password)
    return user


def confirm_password(user: User, password: str) -> None:
    """See that the signed-in person knows the account's password, before what cannot be undone.

    Raises:
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    with throttle.attempt(user.username):
        _with_password(user, password)


def require_recent_login(user: User, current_password: str | None) -> None:
    """Require a sign-in within the last 15 minutes or, where it was sent, the account's password.

    Raises:
        FreshSignInRequired: the sign-in is older, and no password was sent.
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    if current_password is not None:
        confirm_password(user, current_password)
    elif not sessions.is_fresh():
        raise FreshSignInRequired


def reset_attempts(user: User) -> None:
    """Forget failed guesses at the user's password, from this caller's address."""
    for login in (user.username, user.email):
        throttle.reset(normalization.login_form(login))  # as `authenticate` counts them


def start_session(user: User) -> None:
    """Begin a session of this user's, under a new id: one planted earlier must not become signed in."""
    link = connections.owned_by(user.id)
    sessions.regenerate()
    session["user_id"], session["epoch"] = user.id, user.session_epoch
    session["signed_in_at"] = utc_now().timestamp()
    sessions.note_client()
    g.user = user
    if link is not None:
        connections.attach_to_session(connections.reference(link))


def _with_password(user: User | None, password: str) -> tuple[User, passwords.Match]:
    """Return the user, if there is one and it has this password. Does the same work if not.

    A disabled account is treated like an unknown one.
    """
    match = passwords.verify(user.password_hash if user else None, password)
    if user is None or user.disabled or match is passwords.Match.NONE:
        log.warning("wrong_password", extra={"account": user.id if user else None})
        raise InvalidCredentials
    return user, match


def _rehash(user: User, password: str) -> None:
    """Store the password's hash as made today, unless it was changed meanwhile."""
    with passwords.hashing_slot():
        password_hash = passwords.hash_password(password)
    with writing() as db:
        db.execute(
            sa.update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=password_hash)
        )
