"""Connections between people and Spotify accounts: which one a session uses, and how they are stored."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa
from flask import session
from sqlalchemy.orm import Session, lazyload

from app.errors import NotSignedIn, SpotifyAccountInUse, SpotifyAccountMismatch
from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyUser, User
from app.models.snapshots import ConnectionSnapshot, UserSnapshot
from app.spotify.clients.profile import Profile
from app.spotify.clients.token_response import TokenResponse
from app.spotify.tokens import refresh_queue
from app.spotify.tokens.service import TokenService
from app.web import identity, sessions
from app.web.access import current_user

log = logging.getLogger(__name__)

# Unused connections are no longer refreshed after some days, so hourly precision is enough.
_TOUCH_INTERVAL = timedelta(hours=1)


class ConnectionRef(msgspec.Struct, frozen=True):
    """The part of a connection that a session stores. `owner_epoch` is for visitors only."""

    spotify_user_id: int
    grant_id: str
    owner_epoch: int | None


# --- the current session's connection --------------------------------------------------------------


def current_connection() -> ConnectionSnapshot | None:
    """Return the connection that this request may use: the signed-in user's, or the visitor's.

    A visitor's session ends with the grant that they consented to. If the connection has an owner, it also
    ends with the owner's sessions.
    """
    snapshot = identity.current_snapshot()
    if snapshot is None or snapshot.connection is None:
        return None
    connection, current = snapshot.connection, identity.current_session()
    if current_user() is not None:
        return connection
    if current.get("user_id") is not None:  # one that has ended is not a visitor's
        return None
    owner_epoch = snapshot.user.session_epoch if snapshot.user is not None else None
    if connection.token.grant_id != current.get("grant_id") or owner_epoch != current.get("owner_epoch"):
        return None
    return connection


def required_grant() -> str | None:
    """Return the only grant that a visitor's request may use. None for an owner, who may use any."""
    grant_id: str | None = None if current_user() is not None else session.get("grant_id")
    return grant_id


def attach_to_session(connection: ConnectionRef) -> None:
    """Let this session use the connection."""
    session["spotify_user_id"] = connection.spotify_user_id
    session["grant_id"], session["owner_epoch"] = connection.grant_id, connection.owner_epoch
    if session.get("user_id") is None:
        sessions.record_client()  # the connection's owner sees the session
    identity.forget()


def detach_from_session() -> None:
    """Remove the connection from this session."""
    if session.get("spotify_user_id") is not None:
        session["spotify_user_id"] = session["grant_id"] = session["owner_epoch"] = None
    identity.forget()


# --- stored connections ----------------------------------------------------------------------------


def owned_by(user_id: int) -> SpotifyUser | None:
    """Return the connection that a user owns."""
    with reading() as db:
        return db.scalar(sa.select(SpotifyUser).where(SpotifyUser.user_id == user_id))


def grant_of(user_id: int) -> str | None:
    """Return the current grant of the connection that a user owns."""
    spotify_user = owned_by(user_id)
    return None if spotify_user is None else spotify_user.token.grant_id


def reference(
    spotify_user: SpotifyUser | ConnectionSnapshot, owner_epoch: int | None = None
) -> ConnectionRef:
    """Describe a connection with its current grant, as a session stores it."""
    return ConnectionRef(spotify_user.id, spotify_user.token.grant_id, owner_epoch)


def touch(spotify_user: ConnectionSnapshot) -> None:
    """Record that the connection is in use, so that its token is refreshed ahead of time."""
    # A host's clock may have been ahead.
    if abs(utc_now() - spotify_user.last_used_at) >= _TOUCH_INTERVAL:
        run_in_transaction(lambda db: refresh_queue.record_use(db, spotify_user.id), is_idempotent=True)


def claim_anonymous(db: Session, spotify_user_id: int, grant_id: str, user_id: int) -> bool:
    """Give a user the connection that they made as a visitor. Returns whether it was still theirs."""
    spotify_user = db.scalar(_locked(SpotifyUser.id == spotify_user_id))
    if spotify_user is None or spotify_user.user_id is not None or _grant_id(db, spotify_user_id) != grant_id:
        return False
    announce(db, users=[user_id], connections=[spotify_user_id])
    spotify_user.user_id = user_id
    return True


def delete_of_user(db: Session, user_id: int, *, since: datetime | None = None) -> list[int]:
    """Delete the connections that a user has consented to since then, or all of them. Returns their ids.

    The caller passes those to `Connections.forget_deleted` once its transaction is committed.
    """
    found = sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user_id)
    if since is not None:
        found = found.join(AccessToken).where(AccessToken.authorized_at >= since)
    deleted = list(db.scalars(found))
    announce(db, users=[user_id], connections=deleted)
    db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id.in_(deleted)))
    return deleted


class Connections:
    """Changes to connections after which responses that the gateway has cached are no longer valid.

    Args:
        tokens: Stores the tokens of a new grant.
        drop_cached: Drops the cached responses of the connection with this id.
    """

    def __init__(self, tokens: TokenService, drop_cached: Callable[[int], None]) -> None:
        self._tokens = tokens
        self._drop_cached = drop_cached

    def store_grant(
        self, profile: Profile, grant: TokenResponse, *, user: UserSnapshot | None, requested_at: float
    ) -> tuple[SpotifyUser, ConnectionRef]:
        """Store the account and the tokens of a new consent in one transaction.

        Returns the connection, and what the session has to store of it. The latter is read in the same
        transaction, so that ending the owner's sessions after the commit also ends this one. `requested_at`
        is when the code was sent to Spotify (`time.monotonic`).

        Raises:
            SpotifyAccountInUse: The Spotify account belongs to another user.
            SpotifyAccountMismatch: The user has another Spotify account.
            NotSignedIn: The user's account is gone or disabled, or their sessions have ended.
        """

        def work(db: Session) -> tuple[SpotifyUser, ConnectionRef]:
            if user is not None:
                _lock_user(db, user)
            spotify_user = known_account(db, profile)
            if user is not None:
                _require_ownership(db, spotify_user, user.id)
            if spotify_user is None:
                spotify_user = SpotifyUser()
                db.add(spotify_user)
            if user is not None:
                spotify_user.user_id = user.id
            update_profile(spotify_user, profile)
            db.flush()  # assigns the id that the tokens are encrypted for
            announce(db, users=[user.id] if user is not None else [], connections=[spotify_user.id])
            self._tokens.store_grant(db, spotify_user.id, grant, requested_at=requested_at)
            db.expire(spotify_user, ["token"])
            owner_epoch = _owner_epoch(db, spotify_user) if user is None else None
            return spotify_user, reference(spotify_user, owner_epoch)

        spotify_user, stored = run_in_transaction(work, is_idempotent=True)
        self._drop_cached(spotify_user.id)  # some may be errors about a permission that was missing
        return spotify_user, stored

    def disconnect(self) -> None:
        """Disconnect this session from Spotify, and delete the connection.

        A visitor cannot delete a connection that has an owner: their session only stops using it.
        """
        spotify_user, user = current_connection(), current_user()
        if spotify_user is not None and self.delete(spotify_user, user_id=user.id if user else None):
            log.info("spotify_disconnected", extra={"spotify_user_id": spotify_user.id})
        detach_from_session()

    def delete(self, spotify_user: ConnectionSnapshot, *, user_id: int | None = None) -> bool:
        """Delete a connection, its tokens, and the person's Spotify profile.

        Returns False if it was gone, or belongs to someone other than `user_id`, which is None for a visitor.
        A visitor's is deleted only if it still has the grant that the caller has read.
        """

        def work(db: Session) -> bool:
            found = db.scalar(_locked(SpotifyUser.id == spotify_user.id))
            if found is None or found.user_id != user_id:
                return False
            if user_id is None and _grant_id(db, spotify_user.id) != spotify_user.token.grant_id:
                return False
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


def _lock_user(db: Session, user: UserSnapshot) -> None:
    """Lock the account, so that it gets at most one connection, and none once it or its sessions have ended.

    Call this before reading any connection: while this callback waits for the lock, another one of the same
    person may make a connection, which an earlier read would have missed.

    Raises:
        NotSignedIn: The account is gone or disabled, or its sessions have ended.
    """
    columns = sa.select(User.session_epoch, User.disabled_at)
    row = db.execute(columns.where(User.id == user.id).with_for_update()).one_or_none()
    # Under the lock: a password reset may have ended all sessions and deleted what they had connected.
    if row is None or row.disabled_at is not None or row.session_epoch != user.session_epoch:
        raise NotSignedIn
    # Nodes of a Galera cluster do not see each other's locks, only conflicting changes.
    db.execute(sa.update(User).where(User.id == user.id).values(updated_at=utc_now()))


def known_account(db: Session, profile: Profile) -> SpotifyUser | None:
    """Return the row of this Spotify account, locked.

    `account_id` identifies an account. A row from before Spotify sent it is found by `spotify_id`, which can
    pass to another account: a row that has it, but is another account's, keeps its tokens and loses the id.
    """
    by_id = db.scalar(_locked(SpotifyUser.spotify_id == profile.spotify_id))
    if profile.account_id is None:
        return by_id
    known = db.scalar(_locked(SpotifyUser.account_id == profile.account_id))
    if known is None and by_id is not None and by_id.account_id is None:
        return by_id
    if by_id is not None and by_id is not known:
        by_id.spotify_id = f"replaced:{by_id.id}"
        db.flush()
    return known


def _locked(condition: sa.ColumnElement[bool]) -> sa.Select[SpotifyUser]:
    # Without its token: a join would not find a connection that has lost its token and needs a new one.
    alone = sa.select(SpotifyUser).options(lazyload(SpotifyUser.token))
    return alone.where(condition).with_for_update(of=SpotifyUser)


def _require_ownership(db: Session, spotify_user: SpotifyUser | None, user_id: int) -> None:
    """Require that the Spotify account has no other owner, and the user no other Spotify account.

    Raises:
        SpotifyAccountInUse: The Spotify account belongs to another user.
        SpotifyAccountMismatch: The user has another Spotify account.
    """
    if spotify_user is not None and spotify_user.user_id not in (None, user_id):
        raise SpotifyAccountInUse
    own_id = db.scalar(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user_id))
    if own_id is not None and (spotify_user is None or own_id != spotify_user.id):
        raise SpotifyAccountMismatch


def update_profile(spotify_user: SpotifyUser, profile: Profile) -> None:
    """Store what Spotify says about a person."""
    spotify_user.spotify_id = profile.spotify_id
    spotify_user.account_id = profile.account_id or spotify_user.account_id
    spotify_user.display_name = profile.display_name
    spotify_user.image_url = profile.image_url
    spotify_user.product, spotify_user.country = profile.product, profile.country
    spotify_user.last_used_at, spotify_user.profile_due_at = utc_now(), None
