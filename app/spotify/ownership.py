"""Which row is a Spotify account's, and whose it is. All of this runs in the caller's transaction."""

import sqlalchemy as sa
from sqlalchemy.orm import Session, lazyload

from app.errors import (
    InvalidCredentials,
    SpotifyAccountInUse,
    SpotifyAccountMismatch,
    SpotifyUnavailable,
)
from app.infra.clock import utc_now
from app.models import SpotifyUser, User
from app.models.spotify_user import replaced_name
from app.spotify.clients.profile import Profile


def locked(condition: sa.ColumnElement[bool]) -> sa.Select[SpotifyUser]:
    """Return the statement that reads and locks a connection, without its token.

    A join with the token would not find a connection that has lost its token and needs a new one.
    """
    alone = sa.select(SpotifyUser).options(lazyload(SpotifyUser.token))
    return alone.where(condition).with_for_update(of=SpotifyUser)


def known_account(db: Session, profile: Profile) -> SpotifyUser | None:
    """Return the row of this Spotify account, locked.

    `account_id` identifies an account. A row from before Spotify sent it is found by `spotify_id`, which can
    pass to another account: a row that has it, but is another account's, keeps its tokens and loses the id.
    """
    by_id = db.scalar(locked(SpotifyUser.spotify_id == profile.spotify_id))
    if profile.account_id is None:
        return by_id
    known = db.scalar(locked(SpotifyUser.account_id == profile.account_id))
    if known is None and by_id is not None and by_id.account_id is None:
        return by_id
    if by_id is not None and by_id is not known:
        by_id.spotify_id = replaced_name(by_id.id)
        db.flush()
    return known


def require_may_connect(db: Session, spotify_user: SpotifyUser | None, user_id: int | None) -> None:
    """Require that the Spotify account has no other owner, and the user no other Spotify account.

    A visitor, for whom `user_id` is None, may connect an owner's. But their grant, which is of the
    deployment's application, must not replace one of the owner's own application.

    Raises:
        SpotifyAccountInUse: The Spotify account belongs to another user, or uses their own application.
        SpotifyAccountMismatch: The user has another Spotify account.
    """
    if user_id is None:
        if spotify_user is not None and spotify_user.spotify_app_id is not None:
            raise SpotifyAccountInUse(
                "Its owner uses it with their own Spotify application. Sign in to that account."
            )
        return
    if spotify_user is not None and spotify_user.user_id not in (None, user_id):
        raise SpotifyAccountInUse
    own_id = db.scalar(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user_id))
    if own_id is not None and (spotify_user is None or own_id != spotify_user.id):
        raise SpotifyAccountMismatch


def find_to_sign_in(db: Session, profile: Profile) -> tuple[SpotifyUser | None, User | None]:
    """Return the row of this Spotify account, locked, and the owner whom it signs in.

    The owner's row need not be locked: if it changes in a way that matters, their sessions end, including the
    one that is about to start. Whoever deletes or resets the connection waits for the lock on its row.

    Raises:
        SpotifyUnavailable: Spotify has not sent the `account_id` by which the account is known here.
        SpotifyAccountInUse: The owner has not connected it while signed in.
        InvalidCredentials: The owner's account is disabled.
    """
    spotify_user = known_account(db, profile)
    if spotify_user is None:
        return None, None
    if spotify_user.account_id is not None and profile.account_id is None:
        # The id alone may have passed to another person.
        raise SpotifyUnavailable("Spotify did not say which account this is.")
    if spotify_user.user_id is None:
        return spotify_user, None
    owner = db.get_one(User, spotify_user.user_id)
    if spotify_user.sign_in_since is None:
        raise SpotifyAccountInUse(
            "It does not sign in to that account yet. Sign in with the password, then connect it again."
        )
    if owner.disabled:
        raise InvalidCredentials("The account that it signs in to is disabled.")
    return spotify_user, owner


def update_profile(spotify_user: SpotifyUser, profile: Profile) -> None:
    """Store what Spotify says about a person."""
    spotify_user.spotify_id = profile.spotify_id
    spotify_user.account_id = profile.account_id or spotify_user.account_id
    spotify_user.display_name = profile.display_name
    spotify_user.image_url = profile.image_url
    spotify_user.product, spotify_user.country = profile.product, profile.country
    spotify_user.last_used_at, spotify_user.profile_due_at = utc_now(), None
