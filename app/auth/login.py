"""Authenticates people, and starts their sessions. All password verification happens here."""

import logging

import sqlalchemy as sa
from flask import session

from app.auth import lookup, metrics
from app.auth.passwords import Match, Passwords
from app.errors import FreshSignInRequired, InvalidCredentials
from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction
from app.infra.hourly_counts import HourlyCounts
from app.models import User, normalization
from app.spotify import connections
from app.spotify.session_connection import ConnectionRef, attach_to_session
from app.web import identity, sessions
from app.web.throttle import Throttle

log = logging.getLogger(__name__)


class Authenticator:
    """Verifies passwords, with a limit on wrong ones."""

    def __init__(self, throttle: Throttle, passwords: Passwords, hourly: HourlyCounts) -> None:
        self._throttle = throttle
        self._passwords = passwords
        self._hourly = hourly

    def authenticate(self, login: str, password: str) -> User:
        """Return the user with this password and this login, a username or an email address.

        An unknown login takes the same time, counts the same, and gets the same response, so that no one can
        find out whether there is such an account.

        Raises:
            InvalidCredentials: The login or the password is wrong, or the account is disabled.
            TooManyAttempts: This address has to wait before it may try again.
            ServiceUnavailable: Too many passwords are being verified.
        """
        with metrics.counted_login(self._hourly):
            return self._authenticate(login, password)

    def _authenticate(self, login: str, password: str) -> User:
        account = normalization.login_form(login)
        self._throttle.attempt(account)
        try:
            with reading() as db:
                found = lookup.by_login(db, login)
            match = self._passwords.verify(found.password_hash if found else None, password)
        except BaseException:
            self._throttle.cancel(account)
            raise
        user = _require_match(found, match)
        self._throttle.succeed(account)
        if match is Match.AS_TYPED or self._passwords.needs_rehash(user.password_hash):
            self._rehash(user, password)
        return user

    def confirm_password(self, user: User, password: str) -> None:
        """Require the signed-in user's password.

        Raises:
            InvalidCredentials: The password is wrong.
            TooManyAttempts: This address has to wait before it may try again.
            ServiceUnavailable: Too many passwords are being verified.
        """
        self._throttle.attempt(user.username)
        try:
            match = self._passwords.verify(user.password_hash, password)
        except BaseException:
            self._throttle.cancel(user.username)
            raise
        _require_match(user, match)
        self._throttle.succeed(user.username)

    def require_recent_login(self, user: User, current_password: str | None) -> None:
        """Require the password or, if none was sent, a sign-in within the last 15 minutes.

        Raises:
            FreshSignInRequired: No password was sent, and the last sign-in was more than 15 minutes ago.
            InvalidCredentials: The password is wrong.
            TooManyAttempts: This address has to wait before it may try again.
            ServiceUnavailable: Too many passwords are being verified.
        """
        if current_password is not None:
            self.confirm_password(user, current_password)
        elif not sessions.is_fresh():
            raise FreshSignInRequired

    def confirm_owner(self, user: User, current_password: str | None) -> None:
        """Require the password or, if the account has none, a sign-in within the last 15 minutes.

        For what outlives the session: a stolen session must not be enough.

        Raises:
            FreshSignInRequired: The password was not sent, or the last sign-in was too long ago.
            InvalidCredentials: The password is wrong.
            TooManyAttempts: This address has to wait before it may try again.
            ServiceUnavailable: Too many passwords are being verified.
        """
        if current_password is None and user.has_password:
            raise FreshSignInRequired("Send current_password. A recent sign-in is not enough for this.")
        self.require_recent_login(user, current_password)

    def reset_attempts(self, user: User) -> None:
        """Forget wrong passwords for this user from the request's address."""
        for login in (user.username, user.email):
            self._throttle.reset(normalization.login_form(login))

    def _rehash(self, user: User, password: str) -> None:
        """Replace the hash by one with today's parameters, unless the password has been changed since."""
        with self._passwords.hashing_slot():
            password_hash = self._passwords.hash(password)
        is_unchanged = User.id == user.id, User.password_hash == user.password_hash
        stored = sa.update(User).where(*is_unchanged).values(password_hash=password_hash)
        run_in_transaction(lambda db: db.execute(stored), is_idempotent=True)


def start_session(user: User, *, signed_in_at: float | None = None) -> None:
    """Sign the user in, with a new session id: an attacker may have set the old one in their browser.

    `signed_in_at`, in seconds since 1970, is given if the person has signed in earlier.
    """
    connection = connections.owned_by(user.id)
    sessions.regenerate(user.id)
    session["user_id"], session["epoch"] = user.id, user.session_epoch
    session["signed_in_at"] = utc_now().timestamp() if signed_in_at is None else signed_in_at
    sessions.record_client()
    identity.forget()
    if connection is not None:
        attach_to_session(ConnectionRef.of(connection))


def _require_match(user: User | None, match: Match) -> User:
    """Return the user if the password matched and the account is not disabled.

    Raises:
        InvalidCredentials: The password is wrong, or the account is disabled.
    """
    if user is None or user.disabled or match is Match.NONE:
        log.warning("wrong_password", extra={"account": user.id if user else None})
        raise InvalidCredentials
    return user
