"""Accounts for people who sign in with Spotify: without a password, and without an email address."""

import re
import secrets

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.auth import usernames
from app.auth.login import start_session
from app.models import User, normalization
from app.models.user import UNUSABLE_HASH

_DEFAULT_NAME = "listener"
MAX_SUGGESTION = 32


class SpotifySignIn:
    """What signing in with Spotify needs of accounts and sessions."""

    def create_account(self, db: Session, display_name: str | None) -> User:
        """Create an account in the caller's transaction, with a free username like the display name.

        The email address at Spotify is ignored: no one here has verified it, and it identifies no account.
        """
        user = User(username=_free_username(db, suggest_username(display_name)), password_hash=UNUSABLE_HASH)
        user.set_no_email()
        db.add(user)
        db.flush()
        return user

    def start_session(self, user: User) -> None:
        """Sign the user in, with a new session id."""
        start_session(user)


def suggest_username(display_name: str | None) -> str:
    """Return a username like a display name: `Mira T.` becomes `mira-t`."""
    name = normalization.normal_form(display_name or "")
    for allowed in (r"[^\w.]+", r"[^a-z0-9.]+"):
        suggested = re.sub(allowed, "-", name)[:MAX_SUGGESTION].strip("-._")
        if usernames.is_username(suggested):
            return suggested
    return _DEFAULT_NAME


def _free_username(db: Session, suggested: str) -> str:
    """Return the suggestion, or one with a number. A unique key catches what is taken meanwhile."""
    name = suggested
    while db.scalar(sa.select(User.id).where(User.username == name)) is not None:
        name = f"{suggested}-{secrets.randbelow(900_000) + 100_000}"
    return name
