"""Tokens that are mailed to people: single-use, expiring, known to the database by their hash only."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import InvalidToken
from app.infra import database
from app.models import OneTimeToken, Purpose, User, normalization
from app.models.access_token import is_over

TTL = {
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


def reserve_address(db: Session, user: User) -> None:
    """Keep the user's address, which is about to be replaced, for as long as the change can be undone.

    The token that is stored here is discarded. `issue_undo` creates those that are mailed.
    """
    _add(db, user, Purpose.EMAIL_CHANGE, _new_token(), email=user.email, to=user.mail_to)


def issue_undo(db: Session, user_id: int, to: str) -> str | None:
    """Create a token that restores this address, for seven days. None if it is no longer reserved.

    Earlier ones remain valid: the mail server may have accepted an email although it did not say so.
    """
    # Locked, so that none is created while another transaction ends all of them.
    user = db.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    reserved = sa.select(OneTimeToken).where(
        OneTimeToken.user_id == user_id,
        OneTimeToken.purpose == Purpose.EMAIL_CHANGE,
        OneTimeToken.email_address == to,
    )
    row = db.scalar(reserved.limit(1))
    if user is None or row is None:
        return None
    token = _new_token()
    _add(db, user, Purpose.EMAIL_CHANGE, token, email=row.email, to=to)
    return token


def redeem(db: Session, token: str, purpose: Purpose) -> tuple[User, Spent]:
    """Accept a token. Returns its owner, whose row is locked. The caller ends it, and others with it.

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
    return user, Spent(row.email, row.email_address or row.email)


def revoke(db: Session, user: User, *purposes: Purpose) -> None:
    """End the user's tokens for these purposes."""
    ended = sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id, OneTimeToken.purpose.in_(purposes))
    db.execute(ended)


def revoke_all(db: Session, user: User) -> None:
    """End all of the user's tokens."""
    db.execute(sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id))


def restorable(db: Session, user: User) -> set[str]:
    """Return the addresses that can replace the current one again, as they were entered."""
    changes = OneTimeToken.user_id == user.id, OneTimeToken.purpose == Purpose.EMAIL_CHANGE
    entered = sa.func.coalesce(OneTimeToken.email_address, OneTimeToken.email)
    return set(db.scalars(sa.select(entered).where(*changes, OneTimeToken.email != user.email)))


def revoke_since(db: Session, user: User, restored: str) -> datetime | None:
    """End all of the user's tokens, except those that restore an address from before this one.

    Returns when this address was first about to be replaced. Ends none and returns None if that cannot be
    undone any more.
    """
    expires_at = OneTimeToken.expires_at
    columns = sa.func.min(OneTimeToken.id), sa.func.min(expires_at), sa.func.max(expires_at)
    changes = sa.select(*columns).where(
        OneTimeToken.user_id == user.id,
        OneTimeToken.purpose == Purpose.EMAIL_CHANGE,
        OneTimeToken.email.in_(normalization.spellings(restored)),
    )
    found = db.execute(changes).one()
    first_id, first_expires_at, last_expires_at = found
    if first_id is None or last_expires_at <= database.db_now(db):
        return None
    ended = sa.or_(OneTimeToken.purpose != Purpose.EMAIL_CHANGE, OneTimeToken.id >= first_id)
    db.execute(sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id, ended))
    since: datetime = first_expires_at - TTL[Purpose.EMAIL_CHANGE]
    return since


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
    return sa.not_(is_over(OneTimeToken.expires_at, database.db_now(db), TTL[purpose]))


def _add(db: Session, user: User, purpose: Purpose, token: str, *, email: str, to: str) -> OneTimeToken:
    row = OneTimeToken(
        user_id=user.id,
        purpose=purpose,
        token_hash=_hash(token),
        email=email,
        email_address=to,
        expires_at=database.db_now(db) + TTL[purpose],
    )
    db.add(row)
    return row


def _new_token() -> str:
    return secrets.token_urlsafe(32)  # 256 random bits, so that its plain hash reveals nothing


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
