"""Finding an account by what people call it."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.models import User, normalization


def by_login(db: Session, login: str) -> User | None:
    """Find the account with this username or email address."""
    name = normalization.login_form(login)
    if "@" in name:
        return by_email(db, login)
    return db.scalar(sa.select(User).where(User.username == name))


def by_email(db: Session, address: str) -> User | None:
    """Find the account with this email address, however its domain is spelled.

    Earlier releases allowed an account for each spelling. Then it is the one with the spelling given here.
    """
    found = db.scalars(sa.select(User).where(User.email.in_(normalization.spellings(address)))).all()
    exact = normalization.lower_form(address)
    return max(found, key=lambda user: user.email == exact, default=None)
