"""Making an account: for the route and for `flask users create` alike."""

import time

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import email_tokens, passwords
from app.errors import EmailTaken, UsernameTaken
from app.infra.database import reading, run_in_transaction_until
from app.models import User, normalization
from app.spotify import connections

# How long a lost connection to the database is followed up.
PATIENCE_SECONDS = 2.0


def create_account(
    *, username: str, email: str, password: str, visitors_connection: tuple[int, str] | None = None
) -> User:
    """Create the account, and give it the connection that the person made as a visitor.

    `username` is in its normal form, `email` as it was entered. `visitors_connection` is its id and the
    grant they consented to; it is handed over if it has no owner and still has that grant.

    Raises:
        UsernameTaken, EmailTaken
    """
    with passwords.hashing_slot():
        # Before the costly part as well, so that of fifty concurrent requests for one name, one has to hash.
        with reading() as db:
            require_available(db, username=username, email=email)
        password_hash = passwords.hash_password(password)

    def unit(db: Session) -> User:
        # A connection that broke at the COMMIT leaves open whether that took effect. No two hashes
        # are equal, so one that is there already is ours.
        made = db.scalar(
            sa.select(User).where(User.username == username, User.password_hash == password_hash)
        )
        if made is not None:
            return made
        require_available(db, username=username, email=email)
        user = User(username=username, password_hash=password_hash)
        user.set_email(email, verified_at=None)
        db.add(user)
        db.flush()
        if visitors_connection is not None:
            connections.claim_anonymous(db, *visitors_connection, user.id)
        return user

    return run_in_transaction_until(time.monotonic() + PATIENCE_SECONDS, unit)


def require_available(
    db: Session, *, username: str | None = None, email: str | None = None, except_for: int | None = None
) -> None:
    """Report which of the two is taken. The unique keys decide; this only finds out which of them did.

    An address is also taken while its previous owner can still undo a change away from it.

    Raises:
        UsernameTaken, EmailTaken
    """
    others = sa.select(User.id).where(User.id != except_for) if except_for is not None else sa.select(User.id)
    if username is not None and db.scalar(others.where(User.username == username)) is not None:
        raise UsernameTaken
    if email is None:
        return
    spellings = normalization.spellings(email)
    if db.scalar(others.where(User.email.in_(spellings)).limit(1)) is not None:
        raise EmailTaken
    # Second, because a change of address reserves the old one before it gives it up.
    if email_tokens.is_reserved(db, spellings, except_for=except_for):
        raise EmailTaken
