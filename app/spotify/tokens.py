"""Token custody: the one way to a working access token, for requests and the scheduler alike.

`access_token_for` gives one to a request, `refresh_ahead` lets the scheduler see to it in time; both
refresh in the same way:

0. read    a fresh token costs this one read, and no lock;
1. claim   one UPDATE that only one caller can win: this generation, no running lease;
2. call    Spotify, with no transaction open and a deadline well inside the lease;
3. commit  a compare-and-swap on (grant_id, generation), with the row that proves it.

The lock in Redis comes before and spares the losers their try. Nothing depends on it.
"""

import logging
import math
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.clock import utc_now
from app.database import reading, write_again_on_conflict, writing
from app.locks import LockBusy
from app.models import AccessToken, GrantState, SpotifyUser, TokenRefresh
from app.models.token_refresh import Outcome
from app.parts import parts
from app.problems import SpotifyMisconfigured, SpotifyNotConnected, SpotifyUnavailable
from app.sealing import Unreadable
from app.spotify import outcomes
from app.spotify.accounts import Grant, InvalidGrant, Misconfigured, RateLimited, SpotifyError

log = logging.getLogger(__name__)

# A request refreshes what would run out on the way to Spotify; everything sooner is the scheduler's.
REQUEST_LEAD = timedelta(seconds=10)
LEASE = timedelta(seconds=30)  # outlasts the 10 s that a call may take
# How long a caller waits for another's refresh; longer than a call may take.
WAIT_SECONDS = 12.0


class GrantEnded(Exception):
    """Spotify no longer honours the grant; the person has to consent again."""


@dataclass(frozen=True)
class LiveToken:
    """An access token in the clear, for use at once and never for keeping."""

    access_token: str = field(repr=False)
    scope: str
    expires_at: datetime


def access_token_for(link_id: int, lead: timedelta = REQUEST_LEAD) -> LiveToken:
    """A token of this link that outlives `lead`, refreshed if it must be.

    A token that still lives is served while refreshing fails or somebody else is at it.

    Raises:
        GrantEnded: only a new consent helps.
        SpotifyNotConnected: the link is gone.
        SpotifyUnavailable, SpotifyMisconfigured: no token now; the link itself is fine.
    """
    row = _read(link_id)
    now = utc_now()
    if row.lasts(lead, now=now):
        return _open(row)
    still_lives = row.lasts(timedelta(0), now=now)
    try:
        row = _refresh_once(row, lead, wait=not still_lives)
    except (GrantEnded, SpotifyUnavailable, SpotifyMisconfigured):
        if not row.lasts(timedelta(0), now=utc_now()):
            raise
    return _open(row)


def refresh_ahead(link_id: int, lead: timedelta) -> bool:
    """Refresh this link's token if it does not outlive `lead`. Returns whether there was need to.

    Raises:
        GrantEnded, SpotifyNotConnected, SpotifyUnavailable, SpotifyMisconfigured: it was not refreshed.
    """
    row = _read(link_id)
    if row.lasts(lead, now=utc_now()):
        return False
    _refresh_once(row, lead, wait=True)
    return True


def put_grant(db: Session, link_id: int, grant: Grant, asked_at: datetime) -> None:
    """Put a new consent's grant in the place of the old one, whose refreshes can write no more."""
    row = db.scalar(sa.select(AccessToken).where(AccessToken.spotify_user_id == link_id).with_for_update())
    if row is None:
        row = AccessToken(spotify_user_id=link_id)
        db.add(row)
    row.grant_id = uuid.uuid4().hex
    row.generation = 0
    row.state = GrantState.ACTIVE
    row.scope = grant.scope or ""
    row.authorized_at = asked_at
    row.expires_at = asked_at + timedelta(seconds=grant.expires_in)
    row.attempt_id = row.lease_until = row.not_before = row.refreshed_at = None
    row.failures = 0
    for column, sealed in _sealed(link_id, row.grant_id, grant).items():
        setattr(row, column, sealed)
    db.flush()


def due_links(lead: timedelta, *, active_since: datetime) -> list[int]:
    """Links to refresh ahead of time or to ask about again, soonest deadline first."""
    now = utc_now()
    due = (
        sa.select(AccessToken.spotify_user_id)
        .join(SpotifyUser, SpotifyUser.id == AccessToken.spotify_user_id)
        .where(
            AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED,
            AccessToken.expires_at <= now + lead,
            sa.or_(AccessToken.not_before.is_(None), AccessToken.not_before <= now),
            sa.or_(AccessToken.lease_until.is_(None), AccessToken.lease_until < now),
            SpotifyUser.last_used_at >= active_since,
        )
        .order_by(AccessToken.expires_at)
    )
    with reading() as db:
        return list(db.scalars(due))


def _refresh_once(row: AccessToken, lead: timedelta, *, wait: bool) -> AccessToken:
    """Refresh, or share the result of whoever is refreshing. Returns the row as it stands then."""
    deadline, seen = time.monotonic() + (WAIT_SECONDS if wait else 0), (row.grant_id, row.generation)
    try:
        with parts().locks.hold(row.spotify_user_id, until=deadline):
            while True:
                row = _read(row.spotify_user_id)  # another worker may have been first
                overtaken = (row.grant_id, row.generation) != seen
                if row.lasts(timedelta(0) if overtaken else lead, now=utc_now()):
                    return row
                _check_may_try(row)
                refresh_token = _unseal(row, "refresh_token")
                attempt_id = _claim(row)
                if attempt_id is not None:
                    return _refresh(row, attempt_id, refresh_token)
                # Somebody without the lock (Redis was away, or forgot) holds the lease.
                if time.monotonic() >= deadline:
                    raise SpotifyUnavailable
                time.sleep(0.1)
    except LockBusy:
        raise SpotifyUnavailable from None


def _check_may_try(row: AccessToken) -> None:
    """Share an earlier answer while it counts: a refusal, or a failure just now.

    Raises:
        GrantEnded, SpotifyUnavailable
    """
    now = utc_now()
    waiting = row.not_before is not None and row.not_before > now
    if row.state == GrantState.REAUTHORIZATION_REQUIRED or (row.state == GrantState.SUSPECT and waiting):
        raise GrantEnded
    if waiting and row.not_before is not None:
        raise SpotifyUnavailable(retry_after=_whole_seconds(row.not_before - now))


def _refresh(row: AccessToken, attempt_id: str, refresh_token: str) -> AccessToken:
    """Call Spotify under a claim, and commit whatever it says."""
    sent_at = utc_now()
    try:
        grant = parts().accounts.refresh(refresh_token)
    except InvalidGrant:
        return _fail(row, attempt_id, Outcome.INVALID_GRANT, outcomes.after_refusal(row), GrantEnded())
    except Misconfigured as error:
        log.error("spotify_misconfigured", extra={"reason": str(error)})
        after = outcomes.after_failure(row, outcomes.pause(row))
        return _fail(row, attempt_id, Outcome.MISCONFIGURED, after, SpotifyMisconfigured())
    except SpotifyError as error:
        log.warning("token_refresh_failed", extra={"link": row.spotify_user_id, "reason": str(error)})
        pause = outcomes.pause(row, error.retry_after if isinstance(error, RateLimited) else None)
        unavailable = SpotifyUnavailable(retry_after=_whole_seconds(pause))
        return _fail(row, attempt_id, Outcome.UNAVAILABLE, outcomes.after_failure(row, pause), unavailable)
    _commit(row, attempt_id, grant, sent_at)
    return _read(row.spotify_user_id)


def _fail(
    row: AccessToken, attempt_id: str, outcome: Outcome, values: dict[str, object], error: Exception
) -> AccessToken:
    """Write down a failure and raise it, unless it is about the past: then take what there is now."""
    if _finish(attempt_id, row, outcome, values) is Outcome.SUPERSEDED:
        current = _read(row.spotify_user_id)
        if current.lasts(timedelta(0), now=utc_now()):
            return current
    raise error


def _claim(row: AccessToken) -> str | None:
    """Take the lease on this generation and note the attempt. None if somebody else was first."""
    attempt_id, now = uuid.uuid4().hex, utc_now()
    with writing() as db:
        claimed = _update(
            db,
            row,
            {"attempt_id": attempt_id, "lease_until": now + LEASE},
            sa.or_(AccessToken.lease_until.is_(None), AccessToken.lease_until < now),
            sa.or_(AccessToken.not_before.is_(None), AccessToken.not_before <= now),
        )
        if not claimed:
            return None
        db.add(
            TokenRefresh(
                spotify_user_id=row.spotify_user_id,
                grant_id=row.grant_id,
                generation=row.generation,
                attempt_id=attempt_id,
                started_at=now,
            )
        )
    return attempt_id


def _commit(row: AccessToken, attempt_id: str, grant: Grant, sent_at: datetime) -> None:
    """Store the new tokens, unless the grant has moved on meanwhile."""
    values: dict[str, object] = {
        **outcomes.FREE,
        **_sealed(row.spotify_user_id, row.grant_id, grant),
        "generation": row.generation + 1,
        "state": GrantState.ACTIVE,
        # The clock started when Spotify made the token, which was not before we asked.
        "expires_at": sent_at + timedelta(seconds=grant.expires_in),
        "refreshed_at": sent_at,
        "not_before": None,
        "failures": 0,
    }
    if grant.scope is not None:
        values["scope"] = grant.scope
    outcome = _finish(attempt_id, row, Outcome.REFRESHED, values)
    log.info("token_refreshed", extra={"link": row.spotify_user_id, "outcome": outcome.value})


def _finish(attempt_id: str, row: AccessToken, outcome: Outcome, values: dict[str, object]) -> Outcome:
    """Write an attempt's end and what it means for the grant, in one transaction.

    The grant is written only if it is still the one that was asked about: a consent, a
    disconnect or another refresh since then makes this news about the past.
    """

    def unit(db: Session) -> Outcome:
        ended = outcome if _update(db, row, values) else Outcome.SUPERSEDED
        db.execute(
            sa.update(TokenRefresh)
            .where(TokenRefresh.attempt_id == attempt_id)
            .values(outcome=ended, effective=1 if ended is Outcome.REFRESHED else None, finished_at=utc_now())
        )
        return ended

    # Spotify's answer may be the only one: a deadlock must not cost it.
    return write_again_on_conflict(unit)


def _update(
    db: Session, row: AccessToken, values: dict[str, object], *conditions: sa.ColumnElement[bool]
) -> bool:
    """Write to a grant's row if it is still at the generation that was read."""
    updated = db.execute(
        sa.update(AccessToken)
        .where(
            AccessToken.id == row.id,
            AccessToken.grant_id == row.grant_id,
            AccessToken.generation == row.generation,
            *conditions,
        )
        .values(updated_at=utc_now(), **values)
    )
    return updated.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def _whole_seconds(pause: timedelta) -> int:
    """For Retry-After, which has no fractions: rounded up."""
    return math.ceil(pause.total_seconds())


def _read(link_id: int) -> AccessToken:
    with reading() as db:
        row = db.scalar(sa.select(AccessToken).where(AccessToken.spotify_user_id == link_id))
    if row is None:
        raise SpotifyNotConnected
    return row


def _open(row: AccessToken) -> LiveToken:
    return LiveToken(_unseal(row, "access_token"), row.scope, row.expires_at)


def _unseal(row: AccessToken, column: str) -> str:
    """A token in the clear. One that our keys do not open is reported and left alone: a key may be missing.

    Raises:
        SpotifyUnavailable
    """
    try:
        return parts().sealer.open(getattr(row, column), column, row.spotify_user_id, row.grant_id)
    except Unreadable:
        log.error("token_unreadable", extra={"link": row.spotify_user_id, "column": column})
        raise SpotifyUnavailable("The stored tokens cannot be read; the operator has been told.") from None


def _sealed(link_id: int, grant_id: str, grant: Grant) -> dict[str, bytes]:
    """The token columns to write: an absent refresh token keeps the old one."""
    sealer = parts().sealer
    columns: Iterable[tuple[str, str | None]] = (
        ("access_token", grant.access_token),
        ("refresh_token", grant.refresh_token),
    )
    return {
        column: sealer.seal(token, column, link_id, grant_id)
        for column, token in columns
        if token is not None
    }
