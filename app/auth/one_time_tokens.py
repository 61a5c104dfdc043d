"""Tokens that are mailed to people: single-use, expiring, known to the database by their hash only."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import database
from app.models import OneTimeToken, Purpose, User
from app.models.access_token import is_over
from app.problems import InvalidToken

LIVES = {
    Purpose.PASSWORD_RESET: timedelta(hours=1),
    Purpose.EMAIL_VERIFICATION: timedelta(days=1),
    Purpose.EMAIL_CHANGE: timedelta(days=7),
}


@dataclass(frozen=True)
class Issued:
    """A new token, and the address to mail it to."""

    token: str
    to: str


@dataclass(frozen=True)
class Spent:
    """A token that was presented. `email_address` is where it was sent."""

    id: int
    email: str
    email_address: str


def issue(db: Session, user_id: int, purpose: Purpose) -> Issued | None:
    """Create a token for the user's address. Earlier ones remain valid until one of them is used.

    A verification is for the pending address, if there is one. None if the account is gone or disabled.
    """
    user = db.scalar(sa.select(User).where(User.id == user_id, User.disabled_at.is_(None)).with_for_update())
    if user is None:
        return None
    email, to = user.email, user.mail_to
    if purpose is Purpose.EMAIL_VERIFICATION and user.pending_email is not None:
        email, to = user.pending_email, user.pending_email_address or user.pending_email
    token = _new_token()
    _add(db, user, purpose, token, email=email, to=to)
    return Issued(token, to)


def prepare_undo(db: Session, user: User) -> int:
    """Reserve the user's address, which is about to be replaced. Returns the id of the token to undo that.

    The token itself is made by `renew`, when it is mailed. Until then it is known to nobody.
    """
    row = _add(db, user, Purpose.EMAIL_CHANGE, _new_token(), email=user.email, to=user.mail_to)
    db.flush()
    return row.id


def renew(db: Session, token_id: int) -> str | None:
    """Replace a token and start its time again. None if it was used or has ended."""
    token = _new_token()
    lives_until = database.now(db) + LIVES[Purpose.EMAIL_CHANGE]
    renewed = (
        sa.update(OneTimeToken)
        .where(OneTimeToken.id == token_id, OneTimeToken.purpose == Purpose.EMAIL_CHANGE)
        .values(token_hash=_hash(token), expires_at=lives_until)
    )
    return token if db.execute(renewed).rowcount else None  # type: ignore[attr-defined]


def spend(db: Session, token: str, purpose: Purpose) -> tuple[User, Spent]:
    """Use a token up. Returns its owner, whose row is locked. The caller ends the other tokens.

    Raises:
        InvalidToken: it is unknown, used or expired, was sent to an address that is no longer theirs, or
            the account is disabled.
    """
    owner = owner_of(db, token, purpose)
    # The user first: all transactions lock in this order, so they cannot deadlock. The rows may have
    # changed before the lock was acquired, so they are read again.
    again = sa.select(User).where(User.id == owner.id).with_for_update()
    db.scalar(again.execution_options(populate_existing=True))
    user = owner_of(db, token, purpose)
    row = db.scalars(sa.select(OneTimeToken).where(*_is_valid(db, token, purpose))).one()
    spent = Spent(row.id, row.email, row.email_address or row.email)
    db.execute(sa.delete(OneTimeToken).where(OneTimeToken.id == spent.id))
    return user, spent


def use_up(db: Session, user: User, *purposes: Purpose) -> None:
    """End the user's tokens for these purposes."""
    ended = sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id, OneTimeToken.purpose.in_(purposes))
    db.execute(ended)


def use_up_all(db: Session, user: User, *, except_changes_before: int | None = None) -> None:
    """End all of the user's tokens, except those that undo a change made before this token was issued."""
    ended = sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id)
    if except_changes_before is not None:
        ended = ended.where(
            sa.or_(
                OneTimeToken.purpose != Purpose.EMAIL_CHANGE,
                OneTimeToken.id > except_changes_before,
            )
        )
    db.execute(ended)


def is_reserved(db: Session, spellings: set[str], *, except_for: int | None) -> bool:
    """Check whether another user can still get this address back by undoing a change."""
    reserved = sa.select(OneTimeToken.id).where(
        OneTimeToken.email.in_(spellings),
        OneTimeToken.purpose == Purpose.EMAIL_CHANGE,
        _is_alive(db, Purpose.EMAIL_CHANGE),
    )
    if except_for is not None:
        reserved = reserved.where(OneTimeToken.user_id != except_for)
    return db.scalar(reserved.limit(1)) is not None


def owner_of(db: Session, token: str, purpose: Purpose) -> User:
    """Return the owner of a token, which remains valid.

    Raises:
        InvalidToken
    """
    owner = db.scalar(
        sa.select(User)
        .join(OneTimeToken, OneTimeToken.user_id == User.id)
        .where(*_is_valid(db, token, purpose), *_is_for_address(purpose), User.disabled_at.is_(None))
    )
    if owner is None:
        raise InvalidToken
    return owner


def _is_for_address(purpose: Purpose) -> tuple[sa.ColumnElement[bool], ...]:
    """What must be true of the address that a token was sent to."""
    if purpose is Purpose.EMAIL_CHANGE:
        return ()  # it restores that address
    if purpose is Purpose.EMAIL_VERIFICATION:
        return (sa.or_(OneTimeToken.email == User.email, OneTimeToken.email == User.pending_email),)
    return (OneTimeToken.email == User.email,)


def _is_valid(db: Session, token: str, purpose: Purpose) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        OneTimeToken.token_hash == _hash(token),
        OneTimeToken.purpose == purpose,
        _is_alive(db, purpose),
    )


def _is_alive(db: Session, purpose: Purpose) -> sa.ColumnElement[bool]:
    """In SQL: it has not expired, nor was it written while a clock was ahead."""
    return sa.not_(is_over(OneTimeToken.expires_at, database.now(db), LIVES[purpose]))


def _add(db: Session, user: User, purpose: Purpose, token: str, *, email: str, to: str) -> OneTimeToken:
    row = OneTimeToken(
        user_id=user.id,
        purpose=purpose,
        token_hash=_hash(token),
        email=email,
        email_address=to,
        expires_at=database.now(db) + LIVES[purpose],
    )
    db.add(row)
    return row


def _new_token() -> str:
    return secrets.token_urlsafe(32)  # 256 random bits, so that its plain hash reveals nothing


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
