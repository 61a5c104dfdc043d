"""Spotify as a way to sign in to an account. All of this runs in the caller's transaction."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import LastWayIn
from app.infra.clock import utc_now
from app.infra.row_versions import announce
from app.models import AccessToken, MailKind, SpotifyUser, User


class SpotifyWayIn:
    """Adds and removes Spotify as a way to sign in, and emails the owner of the account.

    Args:
        notify: Emails a notice to a user, in the caller's transaction.
        is_enabled: Whether anyone can sign in with Spotify. If not, owners are not told what changes.
    """

    def __init__(self, notify: Callable[..., None], *, is_enabled: bool) -> None:
        self._notify = notify
        self._is_enabled = is_enabled

    def add(self, db: Session, spotify_user: SpotifyUser, user_id: int) -> None:
        """Let a connection sign its owner in from now on. Its row must be locked."""
        if spotify_user.sign_in_since is None:
            spotify_user.sign_in_since = utc_now()
            self._tell_owner(db, user_id, MailKind.SPOTIFY_SIGN_IN_ADDED)

    def remove(self, db: Session, user_id: int, *conditions: sa.ColumnElement[bool]) -> None:
        """Let the user's connection, if it meets these conditions, sign no one in.

        That lasts until the user signs in otherwise and connects it again. Call this before deleting it, too.
        """
        theirs = sa.select(SpotifyUser.id).outerjoin(AccessToken).where(SpotifyUser.user_id == user_id)
        found = db.scalar(theirs.where(SpotifyUser.sign_in_since.is_not(None), *conditions))
        if found is None:
            return
        announce(db, users=[user_id], connections=[found])
        db.execute(sa.update(SpotifyUser).where(SpotifyUser.id == found).values(sign_in_since=None))
        self._tell_owner(db, user_id, MailKind.SPOTIFY_SIGN_IN_REMOVED)

    def _tell_owner(self, db: Session, user_id: int, kind: MailKind) -> None:
        if self._is_enabled:
            self._notify(db, db.get_one(User, user_id), kind)


def require_another_way_in(db: Session, user_id: int) -> None:
    """Require that a user can sign in without Spotify: with a password, or with one chosen by email.

    Raises:
        LastWayIn: They cannot.
    """
    user = db.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    if user is not None and not user.has_password and not user.email_verified:
        raise LastWayIn
