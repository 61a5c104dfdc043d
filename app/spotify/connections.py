"""Links between people and Spotify accounts: found, stored, handed over, erased."""

import logging
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa
from flask import g, session
from sqlalchemy.orm import Session, lazyload

from app.errors import NotSignedIn, SpotifyAccountInUse, SpotifyAccountMismatch
from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction, writing
from app.models import AccessToken, SpotifyUser, User
from app.services import services
from app.spotify.clients.accounts import TokenResponse
from app.spotify.clients.web_api import Profile
from app.spotify.tokens import refresh_queue, service
from app.web import sessions
from app.web.access import current_user

log = logging.getLogger(__name__)

# `last_used_at` decides who is worth refreshing, in days; finer than this it would only cost writes.
_USE_IS_NOTED_EVERY = timedelta(hours=1)


class ConnectionRef(msgspec.Struct, frozen=True):
    """What a session stores of the connection that it uses. `owner_epoch` is for visitors only."""

    spotify_user_id: int
    grant_id: str
    owner_epoch: int | None


def current_connection() -> SpotifyUser | None:
    """The connection that this request may use: the signed-in user's own, or the one a visitor connected.

    A visitor's session ends with the grant that it consented to itself. If the connection has an owner,
    it also ends with the owner's sessions.
    """
    if "link" not in g:
        g.link = _find_connection()
    found: SpotifyUser | None = g.link
    return found


def invalidate_current() -> None:
    """Forget what `current_connection` has read, because it has changed."""
    g.pop("link", None)


def owned_by(user_id: int) -> SpotifyUser | None:
    """The connection that a user owns."""
    with reading() as db:
        return db.scalar(sa.select(SpotifyUser).where(SpotifyUser.user_id == user_id))


def grant_of(user_id: int) -> str | None:
    """The current grant of the connection that a user owns."""
    link = owned_by(user_id)
    return None if link is None else link.token.grant_id


def required_grant() -> str | None:
    """The only grant that this request may use, for a visitor. None for the owner, who may use any."""
    grant_id: str | None = None if current_user() is not None else session.get("grant_id")
    return grant_id


def reference(link: SpotifyUser, owner_epoch: int | None = None) -> ConnectionRef:
    """Describe a connection with its current grant, as a session stores it."""
    return ConnectionRef(link.id, link.token.grant_id, owner_epoch)


def attach_to_session(connection: ConnectionRef) -> None:
    """Let this session use the connection."""
    session["spotify_user_id"] = connection.spotify_user_id
    session["grant_id"], session["owner_epoch"] = connection.grant_id, connection.owner_epoch
    if session.get("user_id") is None:
        sessions.note_client()  # the connection's owner sees the session
    invalidate_current()


def detach_from_session() -> None:
    """Take the connection out of this session."""
    if session.get("spotify_user_id") is not None:
        session["spotify_user_id"] = session["grant_id"] = session["owner_epoch"] = None
    invalidate_current()


def _find_connection() -> SpotifyUser | None:
    user = current_user()
    if user is not None:
        return owned_by(user.id)
    if session.get("user_id") is not None or session.get("spotify_user_id") is None:
        return None  # an account's session that has ended is not a visitor's
    with reading() as db:
        link = db.get(SpotifyUser, session["spotify_user_id"])
        if link is None or link.token.grant_id != session.get("grant_id"):
            return None
        return link if _owner_epoch(db, link) == session.get("owner_epoch") else None


def _owner_epoch(db: Session, link: SpotifyUser) -> int | None:
    if link.user_id is None:
        return None
    return db.scalar(sa.select(User.session_epoch).where(User.id == link.user_id))


def touch(link: SpotifyUser) -> None:
    """Remember that a person used the link: unused ones are not refreshed ahead of time."""
    now = utc_now()
    if abs(now - link.last_used_at) < _USE_IS_NOTED_EVERY:  # a host's clock may have been ahead
        return
    with writing() as db:
        db.execute(sa.update(SpotifyUser).where(SpotifyUser.id == link.id).values(last_used_at=now))
        refresh_queue.reactivate(db, link.id)


def store_grant(
    profile: Profile, grant: TokenResponse, *, user_id: int | None, asked: float
) -> tuple[SpotifyUser, ConnectionRef]:
    """Store what a consent gave: the account and its tokens, in one transaction.

    `asked` is when the code was sent to Spotify (`time.monotonic`). Returns the connection, and what the
    session is to store of it. That is read in the same transaction: whatever ends the owner's sessions
    after the commit must end this one too.

    Raises:
        SpotifyAccountInUse: the Spotify account belongs to another user than `user_id`.
        SpotifyAccountMismatch: the user has another Spotify account.
        NotSignedIn: the user's account is gone or disabled, or this session has ended.
    """

    def unit(db: Session) -> tuple[SpotifyUser, ConnectionRef]:
        _lock_user(db, user_id)
        link = _known_account(db, profile)
        _check_ownership(db, link, user_id)
        if link is None:
            link = SpotifyUser(user_id=user_id, spotify_id=profile.spotify_id)
            db.add(link)
        elif user_id is not None:
            link.user_id = user_id
        _describe(link, profile)
        db.flush()  # gives a new link the id that its tokens are sealed with
        service.store_grant(db, link.id, grant, asked=asked)
        db.expire(link, ["token"])
        return link, reference(link, _owner_epoch(db, link) if user_id is None else None)

    link, stored = run_in_transaction(unit)
    services().shared.drop(link.id)  # what was read without a permission, for example
    return link, stored


def claim_anonymous(db: Session, link_id: int, grant_id: str, user_id: int) -> bool:
    """Give a user the unowned connection that they made as a visitor. Returns whether it was still theirs."""
    link = db.scalar(_locked(SpotifyUser.id == link_id))
    if link is None or link.user_id is not None or _grant_id(db, link_id) != grant_id:
        return False
    link.user_id = user_id
    return True


def disconnect() -> int | None:
    """Disconnect Spotify for this session. Returns the id of the connection if it was erased.

    A visitor cannot erase a connection that has an owner: their session only forgets it.
    """
    link, user = current_connection(), current_user()
    erased = link is not None and delete(link, user_id=user.id if user is not None else None)
    detach_from_session()
    return link.id if link is not None and erased else None


def delete(link: SpotifyUser, *, user_id: int | None = None) -> bool:
    """Erase a connection with its tokens and all that Spotify told about the person.

    Returns False if it was gone, or belongs to someone other than `user_id`, which is None for a visitor.
    A visitor's is erased only while its grant is the one that the caller has seen.
    """
    with writing() as db:
        found = db.scalar(_locked(SpotifyUser.id == link.id))
        if found is None or found.user_id != user_id:
            return False
        if user_id is None and _grant_id(db, link.id) != link.token.grant_id:
            return False
        # Its tokens go with it: ON DELETE CASCADE.
        db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id == link.id))
    services().shared.drop(link.id)
    return True


def delete_of_user(db: Session, user_id: int, *, since: datetime | None = None) -> list[int]:
    """Delete the connections that a user has consented to since then, or ever. Returns their ids.

    The caller passes those to `note_deleted` once its transaction is committed.
    """
    found = sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user_id)
    if since is not None:
        found = found.join(AccessToken).where(AccessToken.authorized_at >= since)
    deleted = list(db.scalars(found))
    db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id.in_(deleted)))
    return deleted


def forget_cached_reads(link_ids: list[int]) -> None:
    """Forget what was read from Spotify over connections that are deleted."""
    for link_id in link_ids:
        services().shared.drop(link_id)
        log.info("spotify_disconnected", extra={"link": link_id})


def _grant_id(db: Session, link_id: int) -> str | None:
    return db.scalar(sa.select(AccessToken.grant_id).where(AccessToken.spotify_user_id == link_id))


def _lock_user(db: Session, user_id: int | None) -> None:
    """Lock the account, so that it gets one connection at most and none once it or this session has ended.

    Before the first look at any connection: one that another callback of the same person's makes while
    this one waits would be missed, and then be taken for a different account's.
    """
    if user_id is None:
        return
    columns = sa.select(User.session_epoch, User.disabled_at)
    user = db.execute(columns.where(User.id == user_id).with_for_update()).one_or_none()
    # Under the lock: a password reset may have ended all sessions and deleted what they had connected.
    if user is None or user.disabled_at is not None or user.session_epoch != session.get("epoch"):
        raise NotSignedIn


def _known_account(db: Session, profile: Profile) -> SpotifyUser | None:
    """The row of this Spotify account, locked.

    `account_id` decides where Spotify sends one; a row from before it did is found by `id`. Ids
    move: a row that has ours but is not this account's belongs to somebody who gave that id up.
    It keeps its tokens, and yields the name.
    """
    by_id = db.scalar(_locked(SpotifyUser.spotify_id == profile.spotify_id))
    if profile.account_id is None:
        return by_id
    known = db.scalar(_locked(SpotifyUser.account_id == profile.account_id))
    if known is None and by_id is not None and by_id.account_id is None:
        return by_id
    if by_id is not None and by_id is not known:
        by_id.spotify_id = f"given-up:{by_id.id}"
        db.flush()
    return known


def _locked(condition: sa.ColumnElement[bool]) -> sa.Select[SpotifyUser]:
    # By itself: joined to its token, a link that has lost it would not be found, and not be mended.
    alone = sa.select(SpotifyUser).options(lazyload(SpotifyUser.token))
    return alone.where(condition).with_for_update(of=SpotifyUser)


def _check_ownership(db: Session, link: SpotifyUser | None, user_id: int | None) -> None:
    if user_id is None:
        return
    if link is not None and link.user_id not in (None, user_id):
        raise SpotifyAccountInUse
    own_id = db.scalar(sa.select(SpotifyUser.id).where(SpotifyUser.user_id == user_id))
    if own_id is not None and (link is None or own_id != link.id):
        raise SpotifyAccountMismatch


def _describe(link: SpotifyUser, profile: Profile) -> None:
    link.spotify_id = profile.spotify_id
    link.account_id = profile.account_id or link.account_id
    link.display_name = profile.display_name
    link.image_url = profile.image_url
    link.product = profile.product
    link.country = profile.country
    link.last_used_at = utc_now()
