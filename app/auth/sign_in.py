"""Proving who one is, and beginning a session. Every password that is looked at is looked at here."""

import logging

import sqlalchemy as sa
from flask import g, request, session

from app import sessions, throttle
from app.auth import names, passwords
from app.database import reading, writing
from app.models import SpotifyUser, User
from app.problems import InvalidCredentials
from app.spotify import links

log = logging.getLogger(__name__)

USER_AGENT_CHARS = 256


def authenticate(login: str, password: str) -> User:
    """Whose login and password these are. `login` is a user name or an e-mail address.

    Nobody can tell whether there is such an account: an unknown one costs the same work, is
    counted the same and answered the same.

    Raises:
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    name, address = names.normal_form(login), names.address_form(login)
    with throttle.one_guess(name):
        with reading() as db:
            found = db.scalar(sa.select(User).where(sa.or_(User.username == name, User.email == address)))
        user = _with_password(found, password)
    if passwords.is_outdated(user.password_hash):
        _rehash(user, password)
    return user


def prove(user: User, password: str) -> None:
    """See that the signed-in person knows the account's password, before what cannot be undone.

    Raises:
        InvalidCredentials, TooManyAttempts, ServiceUnavailable
    """
    with throttle.one_guess(user.username):
        _with_password(user, password)


def forget_failures(user: User) -> None:
    """Forget failed guesses at the user's password, from this caller's address."""
    for login in (user.username, user.email):
        throttle.forget(names.normal_form(login))  # as `authenticate` counts them


def sign_in(user: User) -> None:
    """Begin a session of this user's, under a new id: one planted earlier must not become signed in."""
    with reading() as db:
        link_id = db.scalar(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user.id))
    sessions.renew()
    session["user_id"], session["epoch"] = user.id, user.session_epoch
    session["address"] = request.remote_addr or ""
    session["user_agent"] = request.user_agent.string[:USER_AGENT_CHARS]
    if link_id is not None:
        session["spotify_user_id"] = link_id
    g.user = user
    links.look_again()


def _with_password(user: User | None, password: str) -> User:
    """The user, if there is one and it has this password; the same work if not."""
    if not passwords.matches(user.password_hash if user else None, password) or user is None:
        log.warning("wrong_password", extra={"account": user.id if user else None})
        raise InvalidCredentials
    return user


def _rehash(user: User, password: str) -> None:
    """Store the password with today's parameters, unless it was changed meanwhile."""
    with passwords.turn():
        password_hash = passwords.hash_password(password)
    with writing() as db:
        db.execute(
            sa.update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=password_hash)
        )
