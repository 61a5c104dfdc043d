"""Proving who one is, and beginning a session. Every password that is looked at is looked at here."""

import logging

import sqlalchemy as sa
from flask import g, session

from app.auth import lookup, passwords
from app.errors import FreshSignInRequired, InvalidCredentials
from app.infra.clock import utc_now
from app.infra.database import reading, writing
from app.models import User, normalization
from app.services import services
from app.spotify import connections
from app.web import sessions

log = logging.getLogger(__name__)


def authenticate(login: str, password: str) -> User:
    """Return the user with this login, which is a username or an email address, and this password.

    An unknown login costs the same work, is counted the same, and gets the same response, so that no one
    can tell whether there is such an account.

    Raises:
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    throttle, account = services().throttle, normalization.login_form(login)
    throttle.attempt(account)
    try:
        with reading() as db:
            found = lookup.by_login(db, login)
        match = passwords.verify(found.password_hash if found else None, password)
    except BaseException:
        throttle.cancel(account)
        raise
    user = _require_match(found, match)
    throttle.succeed(account)
    if match is passwords.Match.AS_TYPED or passwords.needs_rehash(user.password_hash):
        _rehash(user, password)
    return user


def confirm_password(user: User, password: str) -> None:
    """See that the signed-in person knows the account's password, before what cannot be undone.

    Raises:
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    throttle = services().throttle
    throttle.attempt(user.username)
    try:
        match = passwords.verify(user.password_hash, password)
    except BaseException:
        throttle.cancel(user.username)
        raise
    _require_match(user, match)
    throttle.succeed(user.username)


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
        services().throttle.reset(normalization.login_form(login))  # as `authenticate` counts them


def start_session(user: User) -> None:
    """Begin a session of this user's, under a new id: one planted earlier must not become signed in."""
    link = connections.owned_by(user.id)
    sessions.regenerate()
    session["user_id"], session["epoch"] = user.id, user.session_epoch
    session["signed_in_at"] = utc_now().timestamp()
    sessions.record_client()
    g.user = user
    if link is not None:
        connections.attach_to_session(connections.reference(link))


def _require_match(user: User | None, match: passwords.Match) -> User:
    """Return the user if the password matches. A disabled account is treated like an unknown one.

    Raises:
        InvalidCredentials: the password does not match, or there is no such user.
    """
    if user is None or user.disabled or match is passwords.Match.NONE:
        log.warning("wrong_password", extra={"account": user.id if user else None})
        raise InvalidCredentials
    return user


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
