"""Links between people and Spotify accounts: found, stored, handed over, erased."""

from datetime import timedelta

import sqlalchemy as sa
from flask import g, session
from sqlalchemy.orm import Session, lazyload

from app.auth.guard import current_user
from app.clock import utc_now
from app.database import reading, write_again_on_conflict, writing
from app.models import SpotifyUser, User
from app.parts import parts
from app.problems import NotSignedIn, SpotifyAccountInUse, SpotifyAccountMismatch
from app.spotify import due, tokens
from app.spotify.accounts import Grant
from app.spotify.webapi import Profile

# `last_used_at` decides who is worth refreshing, in days; finer than this it would only cost writes.
_USE_IS_NOTED_EVERY = timedelta(hours=1)


def current_link() -> SpotifyUser | None:
    """The link this request may use: the session's, else the signed-in user's own.

    A session's link that belongs to another account than the one signed in does not count. A
    visitor may use the link to a Spotify account that they have shown to be theirs.
    """
    if "link" not in g:
        g.link = _find_link()
    found: SpotifyUser | None = g.link
    return found


def look_again() -> SpotifyUser | None:
    """The same, read anew."""
    g.pop("link", None)
    return current_link()


def _find_link() -> SpotifyUser | None:
    user, linked_id = current_user(), session.get("spotify_user_id")
    if user is None and session.get("user_id") is not None:
        return None  # a session that has ended is not a visitor's
    with reading() as db:
        link = db.get(SpotifyUser, linked_id) if linked_id is not None else None
        if link is not None and user is not None and link.user_id not in (None, user.id):
            link = None
        if link is None and user is not None:
            link = db.scalar(sa.select(SpotifyUser).where(SpotifyUser.user_id == user.id))
    return link


def note_use(link: SpotifyUser) -> None:
    """Remember that a person used the link: unused ones are not refreshed ahead of time."""
    now = utc_now()
    if now - link.last_used_at < _USE_IS_NOTED_EVERY:
        return
    with writing() as db:
        db.execute(sa.update(SpotifyUser).where(SpotifyUser.id == link.id).values(last_used_at=now))
        due.wake(db, link.id)


def store_grant(profile: Profile, grant: Grant, *, user_id: int | None, asked: float) -> SpotifyUser:
    """Store what a consent gave: the account and its tokens, in one transaction.

    `asked` is when the code was sent to Spotify (`time.monotonic`).

    Raises:
        SpotifyAccountInUse: the Spotify account belongs to another user than `user_id`.
        SpotifyAccountMismatch: the user has another Spotify account.
        NotSignedIn: the user's account is gone.
    """

    def unit(db: Session) -> SpotifyUser:
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
        tokens.put_grant(db, link.id, grant, asked=asked)
        db.expire(link, ["token"])
        _ = link.token
        return link

    link = write_again_on_conflict(unit)
    parts().shared.drop(link.id)  # what was read without a permission, for example
    return link


def hand_over_visitors_link(db: Session, link_id: int, user_id: int) -> bool:
    """Give a link that nobody owns to a user. Returns whether there was one to give."""
    handed = db.execute(
        sa.update(SpotifyUser)
        .where(SpotifyUser.id == link_id, SpotifyUser.user_id.is_(None))
        .values(user_id=user_id, updated_at=utc_now())
    )
    return handed.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def erase(link: SpotifyUser) -> bool:
    """Erase a link with its tokens and all that Spotify told about the person. False if it was gone."""
    with writing() as db:
        # Its tokens go with it: ON DELETE CASCADE.
        erased = db.execute(sa.delete(SpotifyUser).where(SpotifyUser.id == link.id))
    parts().shared.drop(link.id)
    return erased.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def _lock_user(db: Session, user_id: int | None) -> None:
    """So that two links of one person's cannot be made at once, nor one for an account that is going.

    Before the first look at any link: one that another callback of the same person's makes while
    this one waits would be missed, and then be taken for a different account's.
    """
    if user_id is not None:
        user = sa.select(User.id).where(User.id == user_id).with_for_update()
        if db.scalar(user) is None:
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
