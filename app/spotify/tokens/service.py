"""Token custody: the one way to a working access token, for requests and the scheduler alike.

A fresh token costs one read, and no lock. A stale one is refreshed (`app.spotify.tokens.refresh`) in the
background: whoever holds a token that still lives goes on with it at once, and whoever goes away
takes nothing along.
"""

import logging
import time
import uuid
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.orm import Session

from app.errors import DEPENDENCY_DOWN, BacklineError, SpotifyNotConnected, SpotifyUnavailable
from app.infra import database
from app.models import AccessToken, GrantState
from app.services import services
from app.spotify.clients.accounts import TokenResponse
from app.spotify.tokens import refresh, refresh_queue, transitions
from app.spotify.tokens.encryption import decrypt_token, encrypt_tokens
from app.spotify.tokens.refresh import GrantEnded

log = logging.getLogger(__name__)

# A request refreshes what would run out on the way to Spotify; everything sooner is the scheduler's.
REQUEST_LEAD = timedelta(seconds=10)
# The Web Playback SDK keeps its token; one that ends soon would have it ask again at once.
PLAYBACK_LEAD = timedelta(minutes=5)
# With less than this a token is as good as dead: it would not reach Spotify.
MIN_TTL = timedelta(seconds=1)
# How long a caller waits for a refresh; longer than a call to Spotify may take.
WAIT_SECONDS = 12.0
# A token that Spotify refuses so soon after it gave it is tried once more as it is.
_JUST_REFRESHED = timedelta(minutes=1)
_SCHEDULER_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class LiveToken:
    """An access token in the clear, for use at once and never for keeping."""

    access_token: str = field(repr=False)
    scope: str
    expires_at: datetime
    expires_in: int  # seconds
    version: tuple[str, int]  # grant id and generation


def access_token_for(
    link_id: int,
    lead: timedelta = REQUEST_LEAD,
    *,
    patience: float = 0,
    wait_seconds: float = WAIT_SECONDS,
    grant_id: str | None = None,
) -> LiveToken:
    """A token of this link that outlives `lead`, refreshed if it must be.

    A token that still lives is served while it is refreshed in the background, at once or after
    `patience` seconds; for a dead one's refresh the caller waits, `wait_seconds` at most. With `grant_id`,
    only a token of that grant is returned.

    Raises:
        GrantEnded: only a new consent helps.
        SpotifyNotConnected: the link is gone, or has another grant than `grant_id`.
        SpotifyUnavailable, SpotifyMisconfigured: no token now; the link itself is fine.
    """
    token = _live_token(link_id, lead, patience=patience, wait_seconds=wait_seconds)
    require_grant(token, grant_id)
    return token


def require_grant(token: LiveToken, grant_id: str | None) -> None:
    """Require that a token is of this grant; of any, for None.

    The grant may have been replaced since the caller looked up the connection.

    Raises:
        SpotifyNotConnected
    """
    if grant_id is not None and token.version[0] != grant_id:
        raise SpotifyNotConnected


def _live_token(link_id: int, lead: timedelta, *, patience: float, wait_seconds: float) -> LiveToken:
    row, now = refresh.read(link_id)
    if row.lasts(lead, now=now):
        return _open(row, now)
    if row.lasts(MIN_TTL, now=now):
        if row.may_be_tried(now) or (patience and row.is_leased(now)):
            refreshing = _start_refresh(row, lead)
            with suppress(TimeoutError, BacklineError, GrantEnded, *DEPENDENCY_DOWN):
                if patience:
                    with services().accounts_bulkhead.waiting() as waiter:
                        return _open(*waiter.result(refreshing, patience))
        return _open(row, now)
    refresh.require_refreshable(row, now)
    return _open(*_refreshed(row, lead, wait_seconds))


def replace_rejected(refused: LiveToken, link_id: int, *, wait_seconds: float = WAIT_SECONDS) -> LiveToken:
    """A token in the place of one that Spotify has refused before its time.

    Whoever else holds the refused one shares the refresh. It is the refused one itself if it is brand
    new: refreshing again and again what is refused for another reason would help nobody.

    Raises:
        GrantEnded, SpotifyNotConnected, SpotifyUnavailable, SpotifyMisconfigured
    """
    row, now = refresh.read(link_id)
    if _version(row) != refused.version and row.lasts(MIN_TTL, now=now):
        return _open(row, now)
    if row.refreshed_at is not None and abs(now - row.refreshed_at) < _JUST_REFRESHED:
        return _open(row, now)
    deadline = time.monotonic() + wait_seconds
    refresh.require_refreshable(row, now)
    renewed, now = _refreshed(row, None, wait_seconds)
    if _version(renewed) == _version(row):  # joined somebody who saw no need to refresh it
        renewed, now = _refreshed(row, None, max(0, deadline - time.monotonic()))
    return _open(renewed, now)


def refresh_if_due(link_id: int, lead: timedelta) -> bool:
    """Refresh this link's token if it is due within `lead`. Returns whether there was need to.

    Raises:
        GrantEnded, SpotifyNotConnected, SpotifyUnavailable, SpotifyMisconfigured: it was not refreshed.
    """
    lead = transitions.latest_lead(lead)
    row, now = refresh.read(link_id)
    if row.lasts(lead, now=now):
        refresh_queue.reschedule(row)
        return False
    refresh.refresh(row, lead, wait_seconds=_SCHEDULER_WAIT_SECONDS)
    return True


def store_grant(db: Session, link_id: int, grant: TokenResponse, *, asked: float) -> None:
    """Put a new consent's grant in the place of the old one, whose refreshes can write no more.

    `asked` is when the code was sent to Spotify (`time.monotonic`): its life is counted from there.
    """
    asked_at = database.db_now(db) - timedelta(seconds=time.monotonic() - asked)
    row = db.scalar(sa.select(AccessToken).where(AccessToken.spotify_user_id == link_id).with_for_update())
    if row is None:
        row = AccessToken(spotify_user_id=link_id)
        db.add(row)
    life = timedelta(seconds=grant.expires_in)
    row.grant_id = uuid.uuid4().hex
    row.generation = 0
    row.state = GrantState.ACTIVE
    row.scope = grant.scope or ""
    row.authorized_at = asked_at
    row.expires_at = asked_at + life
    row.due_at = transitions.next_refresh_at(row.expires_at, life, services().config.refresh_lead)
    row.attempt_id = row.lease_until = row.not_before = row.refreshed_at = None
    row.ended_at = row.reminded_days = row.spare_refresh_token = None
    row.failures = 0
    if grant.refresh_token is None:
        raise ValueError("A grant without a refresh token cannot be kept.")
    for column, value in encrypt_tokens(
        link_id, row.grant_id, grant.access_token, grant.refresh_token
    ).items():
        setattr(row, column, value)
    db.flush()


def _refreshed(row: AccessToken, lead: timedelta | None, wait_seconds: float) -> refresh.GrantSnapshot:
    """Refresh, and wait for it.

    Raises:
        GrantEnded, SpotifyNotConnected, SpotifyUnavailable, SpotifyMisconfigured
    """
    with services().accounts_bulkhead.waiting() as waiter:
        try:
            return waiter.result(_start_refresh(row, lead), wait_seconds)
        except TimeoutError:
            raise SpotifyUnavailable(retry_after=1) from None


def _start_refresh(row: AccessToken, lead: timedelta | None) -> "Future[refresh.GrantSnapshot]":
    """Refresh in the background, or join the refresh of this link that is under way in this process."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001

    def work() -> refresh.GrantSnapshot:
        with app.app_context():
            try:
                return refresh.refresh(row, lead, wait_seconds=WAIT_SECONDS)
            except (BacklineError, GrantEnded, *DEPENDENCY_DOWN):
                raise
            except Exception:
                # Nobody may be waiting who would report it.
                log.exception("token_refresh_crashed", extra={"link": row.spotify_user_id})
                raise

    return services().refreshes.start(row.spotify_user_id, work)


def _open(row: AccessToken, now: datetime) -> LiveToken:
    return LiveToken(
        decrypt_token(row, "access_token"),
        row.scope,
        row.expires_at,
        expires_in=int((row.expires_at - now).total_seconds()),
        version=_version(row),
    )


def _version(row: AccessToken) -> tuple[str, int]:
    return row.grant_id, row.generation
