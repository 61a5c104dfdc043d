"""Tokens that are mailed to people: single-use, expiring, known to the database by their hash only."""

import hashlib
import secrets
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import database
from app.models import OneTimeToken, Purpose, User
from app.problems import InvalidToken

LIVES = {Purpose.PASSWORD_RESET: timedelta(hours=1), Purpose.EMAIL_VERIFICATION: timedelta(days=1)}


def issue(db: Session, user: User, purpose: Purpose) -> str | None:
    """Make a token for the user's address. Earlier ones stay good until one of them is used.

    256 random bits, so that its plain hash tells nothing about it. None if the account has gone.
    """
    if db.scalar(sa.select(User.id).where(User.id == user.id).with_for_update()) is None:
        return None
    token = secrets.token_urlsafe(32)
    db.add(
        OneTimeToken(
            user_id=user.id,
            purpose=purpose,
            token_hash=_hash(token),
            email=user.email,
            expires_at=database.now(db) + LIVES[purpose],
        )
    )
    return token


def spend(db: Session, token: str, purpose: Purpose) -> User:
    """Whose token this is, the row locked. With it all others of this purpose are used up.

    Raises:
        InvalidToken: it is unknown, used or expired, or was sent to an address that is no longer theirs.
    """
    owner = owner_of(db, token, purpose)
    # The user first: everybody locks in this order, so that nobody deadlocks. What was read before the
    # lock may have changed, so all of it is read again.
    again = sa.select(User).where(User.id == owner.id).with_for_update()
    db.scalar(again.execution_options(populate_existing=True))
    user = owner_of(db, token, purpose)
    use_up(db, user, purpose)
    return user


def use_up(db: Session, user: User, purpose: Purpose) -> None:
    """Let no token of this purpose be good any more."""
    used = sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id, OneTimeToken.purpose == purpose)
    db.execute(used)


def owner_of(db: Session, token: str, purpose: Purpose) -> User:
    """Whose token this is; it stays good.

    Raises:
        InvalidToken
    """
    owner = db.scalar(
        sa.select(User)
        .join(OneTimeToken, OneTimeToken.user_id == User.id)
        .where(*_good(db, token, purpose), OneTimeToken.email == User.email)
    )
    if owner is None:
        raise InvalidToken
    return owner


def _good(db: Session, token: str, purpose: Purpose) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        OneTimeToken.token_hash == _hash(token),
        OneTimeToken.purpose == purpose,
        OneTimeToken.expires_at > database.now(db),
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
