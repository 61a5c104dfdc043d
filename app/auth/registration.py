"""Creates accounts, for the API and for `flask users create`."""

import time

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import email_tokens
from app.auth.passwords import Passwords
from app.errors import EmailTaken, UsernameTaken
from app.infra.database import reading, run_in_transaction_until
from app.models import User, normalization
from app.spotify import connections

# How long to keep trying if the connection to the database breaks.
COMMIT_TIMEOUT_SECONDS = 2.0


def create_account(
    passwords: Passwords,
    *,
    username: str,
    email: str,
    password: str,
    anonymous_connection: tuple[int, str] | None = None,
) -> User:
    """Create an account.

    Args:
        passwords: Hashes the password.
        username: In its normal form.
        email: As it was entered.
        password: As it was entered.
        anonymous_connection: The id and the grant of the connection that the person made before registering.
            The account gets it if it still has that grant and no owner.

    Raises:
        UsernameTaken: Another account has the username.
        EmailTaken: Another account has the address, or can restore it.
        ServiceUnavailable: Too many passwords are being hashed.
    """
    with passwords.hashing_slot():
        # Check before hashing too, so that only the first of many concurrent requests for a name hashes.
        with reading() as db:
            require_available(db, username=username, email=email)
        password_hash = passwords.hash(password)

    def work(db: Session) -> User:
        # If the connection broke during an earlier COMMIT, the account may exist. No two hashes are equal, so
        # a row with this one is ours.
        is_ours = User.username == username, User.password_hash == password_hash
        created = db.scalar(sa.select(User).where(*is_ours))
        if created is not None:
            return created
        require_available(db, username=username, email=email)
        user = User(username=username, password_hash=password_hash)
        user.set_email(email, verified_at=None)
        db.add(user)
        db.flush()
        if anonymous_connection is not None:
            connections.claim_anonymous(db, *anonymous_connection, user.id)
        return user

    return run_in_transaction_until(time.monotonic() + COMMIT_TIMEOUT_SECONDS, work)


def require_available(
    db: Session, *, username: str | None = None, email: str | None = None, except_for: int | None = None
) -> None:
    """Require that no other account has this username or address. Unique keys catch what this misses.

    An address is also taken while its previous owner can restore it.

    Raises:
        UsernameTaken: Another account has the username.
        EmailTaken: Another account has the address, or can restore it.
    """
    others = sa.select(User.id).where(User.id != except_for) if except_for is not None else sa.select(User.id)
    if username is not None and db.scalar(others.where(User.username == username)) is not None:
        raise UsernameTaken
    if email is None:
        return
    spellings = normalization.spellings(email)
    if db.scalar(others.where(User.email.in_(spellings)).limit(1)) is not None:
        raise EmailTaken
    # After the accounts: a change of address reserves the old address before it replaces it.
    if email_tokens.is_reserved(db, spellings, except_for=except_for):
        raise EmailTaken
