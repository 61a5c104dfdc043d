"""Finds and locks accounts."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import InvalidCredentials, NotSignedIn
from app.infra.row_versions import announce
from app.models import User, normalization


def by_login(db: Session, login: str) -> User | None:
    """Return the account with this username or email address."""
    name = normalization.login_form(login)
    if "@" in name:
        return by_email(db, login)
    return db.scalar(sa.select(User).where(User.username == name))


def by_email(db: Session, address: str) -> User | None:
    """Return the account with this email address, in any spelling of its domain.

    Earlier releases allowed one account for each spelling. If there are several, the exact spelling decides.
    """
    found = db.scalars(sa.select(User).where(User.email.in_(normalization.spellings(address)))).all()
    exact = normalization.lower_form(address)
    return max(found, key=lambda user: user.email == exact, default=None)


def lock(db: Session, user: User) -> User:
    """Lock an account's row to change it, and return it as it is now.

    Raises:
        NotSignedIn: The account has been deleted or disabled since `user` was read.
    """
    row = db.scalar(sa.select(User).where(User.id == user.id).with_for_update())
    if row is None or row.disabled:
        raise NotSignedIn
    announce(db, users=[row.id])
    return row


def lock_confirmed(db: Session, user: User) -> User:
    """Lock the row of an account whose owner has just confirmed the password.

    Raises:
        NotSignedIn: The account has been deleted or disabled since `user` was read.
        InvalidCredentials: The password has been changed since.
    """
    row = lock(db, user)
    if row.password_hash != user.password_hash:
        raise InvalidCredentials("Your password was just changed. Sign in again with the new password.")
    return row
