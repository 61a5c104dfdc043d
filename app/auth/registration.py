"""Making an account: for the route and for `flask users create` alike."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import passwords
from app.database import write_again_on_conflict
from app.models import User
from app.problems import EmailTaken, UsernameTaken
from app.spotify import links


def create_account(
    *, username: str, email: str, password: str, visitors_link_id: int | None = None
) -> tuple[User, int | None]:
    """Create the account, and give it the link its maker had as a visitor.

    Name and address are in their normal form. Returns the user, and the link's id if there was
    one that nobody owned.

    Raises:
        UsernameTaken, EmailTaken
    """
    password_hash = passwords.hash_password(password)

    def unit(db: Session) -> tuple[User, int | None]:
        _refuse_taken(db, username, email)
        user = User(username=username, email=email, password_hash=password_hash)
        db.add(user)
        db.flush()
        if visitors_link_id is not None and links.hand_over_visitors_link(db, visitors_link_id, user.id):
            return user, visitors_link_id
        return user, None

    return write_again_on_conflict(unit)


def _refuse_taken(db: Session, username: str, email: str) -> None:
    """Say plainly what is taken. The unique keys decide; this only finds out which of them did."""
    if db.scalar(sa.select(User.id).where(User.username == username)) is not None:
        raise UsernameTaken
    if db.scalar(sa.select(User.id).where(User.email == email)) is not None:
        raise EmailTaken
