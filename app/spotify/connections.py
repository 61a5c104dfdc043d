"""Connections between people and Spotify accounts: how they are stored, replaced, and deleted."""

import logging
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyUser, User
from app.models.snapshots import ConnectionSnapshot, UserSnapshot
from app.models.user import lock_user
from app.spotify import ownership
from app.spotify.applications.lookup import Applications
from app.spotify.clients.consent import Consent
from app.spotify.session_connection import (
    ConnectionRef,
    current_connection,
    detach_from_session,
)
from app.spotify.tokens import refresh_queue
from app.spotify.tokens.service import TokenService
from app.spotify.ways_in import SpotifyWayIn, require_another_way_in
from app.web.access import current_user

log = logging.getLogger(__name__)

# Unused connections are no longer refreshed after some days, so hourly precision is enough.
_TOUCH_INTERVAL = timedelta(hours=1)
# For a new consent, whose code cannot be used again. On Galera, simultaneous ones conflict at COMMIT.
_RETRIES = 10


def owned_by(user_id: int) -> SpotifyUser | None:
    """Return the connection that a user owns."""
    with reading() as db:
        return db.scalar(sa.select(SpotifyUser).where(SpotifyUser.user_id == user_id))


def grant_of(user_id: int) -> str | None:
    """Return the current grant of the connection that a user owns."""
    spotify_user = owned_by(user_id)
    return None if spotify_user is None else spotify_user.token.grant_id


def owner_of(connection: ConnectionRef) -> User | None:
    """Return the owner of a connection that still has this grant, and signs them in."""
    with reading() as db:
        found = sa.select(User).join(SpotifyUser, SpotifyUser.user_id == User.id).join(AccessToken)
        is_same = SpotifyUser.id == connection.spotify_user_id, AccessToken.grant_id == connection.grant_id
        signs_in = SpotifyUser.sign_in_since.is_not(None), User.disabled_at.is_(None)
        return db.scalar(found.where(*is_same, *signs_in))


def touch(spotify_user: ConnectionSnapshot) -> None:
    """Record that the connection is in use, so that its token is refreshed ahead of time."""
    # A host's clock may have been ahead.
    if abs(utc_now() - spotify_user.last_used_at) >= _TOUCH_INTERVAL:
        run_in_transaction(lambda db: refresh_queue.record_use(db, spotify_user.id), is_idempotent=True)


def claim_anonymous(db: Session, spotify_user_id: int, grant_id: str, user_id: int) -> bool:
    """Give a user the connection that they made as a visitor. Returns whether it was still theirs."""
    spotify_user = db.scalar(ownership.locked(SpotifyUser.id == spotify_user_id))
    if spotify_user is None or spotify_user.user_id is not None or _grant_id(db, spotify_user_id) != grant_id:
        return False
    announce(db, users=[user_id], connections=[spotify_user_id])
    spotify_user.user_id = user_id
    return True


def delete_of_user(db: Session, user_id: int, *conditions: sa.ColumnElement[bool]) -> list[int]:
    """Delete the connections of a user that meet these conditions. Returns their ids.

    The caller passes those to `Connections.forget_deleted` once its transaction is committed.
    """
    theirs = sa.select(SpotifyUser.id).outerjoin(AccessToken).where(SpotifyUser.user_id == user_id)
    found = theirs.where(*conditions)
    deleted = list(db.scalars(found))
    announce(db, users=[user_id], connections=deleted)
    db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id.in_(deleted)))
    return deleted


class Connections:
    """Changes to connections after which responses that the gateway has cached are no longer valid.

    Args:
        tokens: Stores the tokens of a new grant.
        applications: Knows with which application a person connects.
        way_in: Records whether a connection signs its owner in.
        drop_cached: Drops the cached responses of the connection with this id.
    """

    def __init__(
        self,
        tokens: TokenService,
        applications: Applications,
        way_in: SpotifyWayIn,
        drop_cached: Callable[[int], None],
    ) -> None:
        self._tokens = tokens
        self._applications = applications
        self._way_in = way_in
        self._drop_cached = drop_cached

    def store_grant(
        self, consent: Consent, *, user: UserSnapshot | None, signs_in: bool = False
    ) -> tuple[SpotifyUser, ConnectionRef]:
        """Store the account and the tokens of a new consent in one transaction.

        Returns the connection, and what the session has to store of it. The latter is read in the same
        transaction, so that ending the owner's sessions after the commit also ends this one. With `signs_in`,
        the connection signs the user in from now on.

        Raises:
            SpotifyAccountInUse, SpotifyAccountMismatch: See `ownership.require_may_connect`.
            NotSignedIn: The user's account is gone or disabled, or their sessions have ended.
            SpotifyStateMismatch: The user connects with another application than this one now.
        """

        def work(db: Session) -> tuple[SpotifyUser, ConnectionRef]:
            if user is not None:
                lock_user(db, user.id, user.session_epoch)
                self._applications.require_current(db, user.id, consent.application)
            spotify_user = ownership.known_account(db, consent.profile)
            ownership.require_may_connect(db, spotify_user, user.id if user is not None else None)
            if spotify_user is None:
                spotify_user = SpotifyUser()
            self._store(db, spotify_user, user.id if user is not None else None, consent)
            if user is not None and signs_in:
                self._way_in.add(db, spotify_user, user.id)
            owner_epoch = _owner_epoch(db, spotify_user) if user is None else None
            return spotify_user, ConnectionRef.of(spotify_user, owner_epoch)

        spotify_user, stored = run_in_transaction(work, retries=_RETRIES, is_idempotent=True)
        self._drop_cached(spotify_user.id)  # some may be errors about a permission that was missing
        return spotify_user, stored

    def sign_in(
        self, consent: Consent, create_account: Callable[[Session, str | None], User]
    ) -> tuple[SpotifyUser, ConnectionRef, User]:
        """Store a consent, and return the user whom it signs in: the owner of the Spotify account.

        Without an owner, an account is created. The connection of a visitor becomes its own: with the new
        grant, the visitor's session can no longer use it. A connection made with the owner's own application
        keeps its grant: the new one, of the deployment's, only proves who the person is.

        Raises:
            SpotifyUnavailable, SpotifyAccountInUse, InvalidCredentials: See `ownership.find_to_sign_in`.
        """

        def work(db: Session) -> tuple[SpotifyUser, ConnectionRef, User]:
            spotify_user, owner = ownership.find_to_sign_in(db, consent.profile)
            if owner is None:
                owner = create_account(db, consent.profile.display_name)
                spotify_user = spotify_user or SpotifyUser()
                spotify_user.sign_in_since = utc_now()
            assert spotify_user is not None
            if spotify_user.spotify_app_id is None:
                self._store(db, spotify_user, owner.id, consent)
            return spotify_user, ConnectionRef.of(spotify_user), owner

        spotify_user, stored, owner = run_in_transaction(work, retries=_RETRIES, is_idempotent=True)
        self._drop_cached(spotify_user.id)
        return spotify_user, stored, owner

    def _store(self, db: Session, spotify_user: SpotifyUser, owner_id: int | None, consent: Consent) -> None:
        """Store what a consent is for in a row that is new or locked. None keeps the owner."""
        db.add(spotify_user)
        if owner_id is not None:
            spotify_user.user_id = owner_id
        ownership.update_profile(spotify_user, consent.profile)
        spotify_user.spotify_app_id = consent.application.id
        db.flush()  # assigns the id that the tokens are encrypted for
        announce(db, users=[owner_id] if owner_id is not None else [], connections=[spotify_user.id])
        self._tokens.store_grant(db, spotify_user.id, consent)
        db.expire(spotify_user, ["token"])

    def disconnect(self) -> None:
        """Disconnect this session from Spotify, and delete the connection.

        A visitor cannot delete a connection that has an owner: their session only stops using it.

        Raises:
            LastWayIn: See `delete`.
        """
        spotify_user, user = current_connection(), current_user()
        if spotify_user is not None and self.delete(spotify_user, user_id=user.id if user else None):
            log.info("spotify_disconnected", extra={"spotify_user_id": spotify_user.id})
        detach_from_session()

    def delete(self, spotify_user: ConnectionSnapshot, *, user_id: int | None = None) -> bool:
        """Delete a connection, its tokens, and the person's Spotify profile.

        Returns False if it was gone, or belongs to someone other than `user_id`, which is None for a visitor.
        A visitor's is deleted only if it still has the grant that the caller has read.

        Raises:
            LastWayIn: The user could no longer sign in.
        """

        def work(db: Session) -> bool:
            if user_id is not None:
                require_another_way_in(db, user_id)
            found = db.scalar(ownership.locked(SpotifyUser.id == spotify_user.id))
            if found is None or found.user_id != user_id:
                return False
            if user_id is None and _grant_id(db, spotify_user.id) != spotify_user.token.grant_id:
                return False
            if user_id is not None:
                self._way_in.remove(db, user_id)
            announce(db, users=[user_id] if user_id is not None else [], connections=[spotify_user.id])
            # The database deletes its tokens too: ON DELETE CASCADE.
            db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id == spotify_user.id))
            return True

        if is_deleted := run_in_transaction(work):
            self._drop_cached(spotify_user.id)
        return is_deleted

    def forget_deleted(self, spotify_user_ids: list[int]) -> None:
        """Log that `delete_of_user` deleted connections, and drop their cached responses."""
        for spotify_user_id in spotify_user_ids:
            self._drop_cached(spotify_user_id)
            log.info("spotify_disconnected", extra={"spotify_user_id": spotify_user_id})


def _owner_epoch(db: Session, spotify_user: SpotifyUser) -> int | None:
    if spotify_user.user_id is None:
        return None
    return db.scalar(sa.select(User.session_epoch).where(User.id == spotify_user.user_id))


def _grant_id(db: Session, spotify_user_id: int) -> str | None:
    return db.scalar(sa.select(AccessToken.grant_id).where(AccessToken.spotify_user_id == spotify_user_id))
