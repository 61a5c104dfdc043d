"""Single-use tokens that are sent by email. The database stores only their hashes."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import InvalidToken
from app.infra import database
from app.infra.clock import utc_now
from app.infra.row_versions import announce
from app.models import OneTimeToken, Purpose, User, normalization
from app.models.times import is_over

TTL = {
    Purpose.PASSWORD_RESET: timedelta(hours=1),
    Purpose.EMAIL_VERIFICATION: timedelta(days=1),
    Purpose.EMAIL_CHANGE: timedelta(days=7),
}


@dataclass(frozen=True)
class IssuedToken:
    """A new token, and the address to send it to."""

    token: str
    to: str


@dataclass(frozen=True)
class SentTo:
    """The address that a redeemed token was sent to, in its normal form and as it was entered."""

    email: str
    entered: str


def issue(db: Session, user_id: int, purpose: Purpose) -> IssuedToken | None:
    """Issue a token for the user's address. Earlier tokens stay valid until one of them is redeemed.

    A verification token is for the pending address, if there is one. Returns None if the account is gone or
    disabled.
    """
    user = db.scalar(sa.select(User).where(User.id == user_id, User.disabled_at.is_(None)).with_for_update())
    if user is None:
        return None
    _mark_changed(user)
    email, to = user.email, user.mail_to
    if purpose is Purpose.EMAIL_VERIFICATION and user.pending_email is not None:
        email, to = user.pending_email, user.pending_email_address or user.pending_email
    token = _new_token()
    _add(db, user, purpose, token, email=email, to=to)
    return IssuedToken(token, to)


def reserve_address(db: Session, user: User) -> None:
    """Reserve the user's address, which is about to be replaced, until the change can no longer be undone.

    The token stored here is never sent. `issue_undo` issues those that are.
    """
    _add(db, user, Purpose.EMAIL_CHANGE, _new_token(), email=user.email, to=user.mail_to)


def issue_undo(db: Session, user_id: int, to: str) -> str | None:
    """Issue a token that restores this address within seven days, or return None if it is not reserved.

    Earlier tokens stay valid: the mail server may have accepted an email without our knowledge.
    """
    # Lock the user, so that no token is issued while another transaction revokes them all.
    user = db.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    reserved = sa.select(OneTimeToken).where(
        OneTimeToken.user_id == user_id,
        OneTimeToken.purpose == Purpose.EMAIL_CHANGE,
        OneTimeToken.email_address == to,
    )
    row = db.scalar(reserved.limit(1))
    if user is None or row is None:
        return None
    _mark_changed(user)
    token = _new_token()
    _add(db, user, Purpose.EMAIL_CHANGE, token, email=row.email, to=to)
    return token


def _mark_changed(user: User) -> None:
    """Let this transaction conflict with others that lock the same user on other nodes of a Galera cluster.

    Nodes do not see each other's locks, only conflicting changes.
    """
    user.updated_at = utc_now()  # not remembered by any process, so it need not be announced


def redeem(db: Session, token: str, purpose: Purpose) -> tuple[User, SentTo]:
    """Accept a token. Returns its owner, whose row is locked. The caller revokes the token, and others.

    Raises:
        InvalidToken: The token is unknown, used, or expired, or was sent to an address that the owner has
            replaced, or the account is disabled.
    """
    owner = owner_of(db, token, purpose)
    # All transactions lock the user first, so they cannot deadlock. The rows may have changed before the lock
    # was acquired, so read them again.
    again = sa.select(User).where(User.id == owner.id).with_for_update()
    db.scalar(again.execution_options(populate_existing=True))
    user = owner_of(db, token, purpose)
    row = db.scalars(sa.select(OneTimeToken).where(*_is_valid(db, token, purpose))).one()
    announce(db, users=[user.id])
    return user, SentTo(row.email, row.email_address or row.email)


def revoke(db: Session, user: User, purpose: Purpose) -> None:
    """Revoke the user's tokens for a purpose."""
    theirs = OneTimeToken.user_id == user.id, OneTimeToken.purpose == purpose
    db.execute(sa.delete(OneTimeToken).where(*theirs))


def revoke_all(db: Session, user: User) -> None:
    """Revoke all tokens of the user."""
    db.execute(sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id))


def restorable_addresses(db: Session, user: User) -> set[str]:
    """Return the earlier addresses that can still be restored, as they were entered."""
    changes = OneTimeToken.user_id == user.id, OneTimeToken.purpose == Purpose.EMAIL_CHANGE
    entered = sa.func.coalesce(OneTimeToken.email_address, OneTimeToken.email)
    return set(db.scalars(sa.select(entered).where(*changes, OneTimeToken.email != user.email)))


def revoke_since(db: Session, user: User, restored: str) -> datetime | None:
    """Revoke the user's tokens, except those that restore an address from before this one.

    Returns when this address was first reserved. If it is not reserved, revokes nothing and returns None.
    """
    expires_at = OneTimeToken.expires_at
    columns = sa.func.min(OneTimeToken.id), sa.func.min(expires_at), sa.func.max(expires_at)
    changes = sa.select(*columns).where(
        OneTimeToken.user_id == user.id,
        OneTimeToken.purpose == Purpose.EMAIL_CHANGE,
        OneTimeToken.email.in_(normalization.spellings(restored)),
    )
    first_id, first_expires_at, last_expires_at = db.execute(changes).one()
    if first_id is None or last_expires_at <= database.db_now(db):
        return None
    revoked = sa.or_(OneTimeToken.purpose != Purpose.EMAIL_CHANGE, OneTimeToken.id >= first_id)
    db.execute(sa.delete(OneTimeToken).where(OneTimeToken.user_id == user.id, revoked))
    since: datetime = first_expires_at - TTL[Purpose.EMAIL_CHANGE]
    return since


def is_reserved(db: Session, spellings: set[str], *, except_for: int | None) -> bool:
    """Return whether another user can still restore this address by undoing a change."""
    reserved = sa.select(OneTimeToken.id).where(
        OneTimeToken.email.in_(spellings),
        OneTimeToken.purpose == Purpose.EMAIL_CHANGE,
        _is_current(db, Purpose.EMAIL_CHANGE),
    )
    if except_for is not None:
        reserved = reserved.where(OneTimeToken.user_id != except_for)
    return db.scalar(reserved.limit(1)) is not None


def owner_of(db: Session, token: str, purpose: Purpose) -> User:
    """Return the owner of a token, which stays valid.

    Raises:
        InvalidToken: See `redeem`.
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
    """Return SQL conditions on the address that a token was sent to."""
    if purpose is Purpose.EMAIL_CHANGE:
        return ()  # it restores that address
    if purpose is Purpose.EMAIL_VERIFICATION:
        return (sa.or_(OneTimeToken.email == User.email, OneTimeToken.email == User.pending_email),)
    return (OneTimeToken.email == User.email,)


def _is_valid(db: Session, token: str, purpose: Purpose) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        OneTimeToken.token_hash == _hash(token),
        OneTimeToken.purpose == purpose,
        _is_current(db, purpose),
    )


def _is_current(db: Session, purpose: Purpose) -> sa.ColumnElement[bool]:
    """Return an SQL condition: the token has not expired, and no clock was ahead when it was issued."""
    return sa.not_(is_over(OneTimeToken.expires_at, database.db_now(db), TTL[purpose]))


def _add(db: Session, user: User, purpose: Purpose, token: str, *, email: str, to: str) -> None:
    row = OneTimeToken(
        user_id=user.id,
        purpose=purpose,
        token_hash=_hash(token),
        email=email,
        email_address=to,
        expires_at=database.db_now(db) + TTL[purpose],
    )
    db.add(row)


def _new_token() -> str:
    return secrets.token_urlsafe(32)  # 256 random bits cannot be guessed from an unkeyed hash


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
