"""The scheduler's queue: the rows of `access_tokens` whose `due_at` has passed.

Claiming a grant moves its `due_at` to the end of the lease, which hides it from the schedulers. If its
process dies, the grant is due again then. Requests ignore `due_at` and refresh when they need to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.clock import utc_now
from app.infra.database import reading, run_in_transaction
from app.infra.row_versions import announce
from app.models import AccessToken, GrantState, SpotifyUser, TokenRefresh
from app.models.times import CLOCK_TOLERANCE, LONGEST_WAIT
from app.spotify.clients.application import ALL_KINDS, ApplicationKind

# How many due connections to sort: those that became due first. Sorting all of them would take the longer,
# the more are overdue.
_WINDOW = 1000


@dataclass(frozen=True, eq=False)
class DueGrant:
    """A grant that is due, locked until the transaction ends."""

    row: AccessToken
    last_used_at: datetime
    is_refreshed: bool  # the history shows that this generation is already refreshed


def earliest(
    db: Session, limit: int, due_by: datetime, kinds: frozenset[ApplicationKind] = ALL_KINDS
) -> list[int]:
    """Return up to `limit` ids of grants that were due by `due_by`, next to expire first. Locks none.

    `kinds` restricts them to grants of these kinds of applications.

    Grants that failed come last: when many are rejected, the breaker's next probe must be another grant.
    """
    ids: list[int] = []
    for has_failed in (False, True):
        if len(ids) < limit:
            ids += db.scalars(_earliest(has_failed, due_by, kinds, limit - len(ids)))
    return ids


def _earliest(
    has_failed: bool, due_by: datetime, kinds: frozenset[ApplicationKind], limit: int
) -> sa.Select[int]:
    """Return the query for grants that have failed, or have not. Each reads one index in its order."""
    failures = AccessToken.failures > 0 if has_failed else AccessToken.failures == 0
    first = (
        sa.select(AccessToken.id, AccessToken.failures, AccessToken.expires_at)
        .where(failures, AccessToken.due_at <= due_by)
        .order_by(AccessToken.due_at)
        .limit(_WINDOW)
    )
    if kinds == {ApplicationKind.OWN}:  # the breaker is open for the deployment's, which may be most of them
        own = sa.select(SpotifyUser.id).where(SpotifyUser.spotify_app_id.is_not(None))
        first = first.where(AccessToken.spotify_user_id.in_(own))
    elif kinds == {ApplicationKind.DEPLOYMENT}:
        first = first.where(AccessToken.client_id.is_(None))
    elif has_failed:  # the other index would be sorted by the number of failures
        for dialect in ("mysql", "mariadb"):
            first = first.with_hint(AccessToken, "FORCE INDEX (ix_access_tokens_due_at)", dialect)
    window = first.subquery()
    return sa.select(window.c.id).order_by(window.c.failures, window.c.expires_at).limit(limit)


def lock(db: Session, ids: Sequence[int], due_by: datetime, now: datetime) -> list[DueGrant]:
    """Lock the grants that are still due and not locked by another transaction, next to expire first."""
    last_used_at = (
        sa.select(SpotifyUser.last_used_at)
        .where(SpotifyUser.id == AccessToken.spotify_user_id)
        .correlate(AccessToken)
        .scalar_subquery()
    )
    is_refreshed = (
        sa.exists()
        .where(
            TokenRefresh.spotify_user_id == AccessToken.spotify_user_id,
            TokenRefresh.grant_id == AccessToken.grant_id,
            TokenRefresh.generation == AccessToken.generation,
            TokenRefresh.effective == 1,
        )
        .correlate(AccessToken)
    )
    due = (
        sa.select(AccessToken, last_used_at, is_refreshed)
        .where(AccessToken.id.in_(ids), AccessToken.due_at <= due_by, AccessToken.not_leased(now))
        .with_for_update(skip_locked=True)
    )
    locked = [DueGrant(*found) for found in db.execute(due)]
    return sorted(locked, key=lambda found: (found.row.failures, found.row.expires_at))


def correct_due_times() -> None:
    """Make connections due whose `due_at` is further ahead than it can have been set."""

    def work(db: Session) -> None:
        now = database.db_now(db)
        ahead = AccessToken.due_at > now + LONGEST_WAIT + CLOCK_TOLERANCE
        db.execute(
            sa.update(AccessToken)
            .where(ahead)
            .values(due_at=now)
            .execution_options(synchronize_session=False)
        )

    run_in_transaction(work, is_idempotent=True)


def count_due() -> int:
    """Return the number of connections that are due now."""
    with reading() as db:
        now = database.db_now(db)
        return db.execute(sa.select(sa.func.count()).where(AccessToken.is_due(now, now))).scalar_one()


def record_use(db: Session, spotify_user_id: int) -> None:
    """Record that a connection is in use now, and return it to the queue if it was idle."""
    announce(db, connections=[spotify_user_id], best_effort=True)
    used = sa.update(SpotifyUser).where(SpotifyUser.id == spotify_user_id)
    db.execute(used.values(last_used_at=utc_now()))
    reactivate(db, spotify_user_id)


def reactivate(db: Session, spotify_user_id: int) -> None:
    """Return a connection to the queue, if it was idle."""
    is_idle = sa.and_(
        AccessToken.spotify_user_id == spotify_user_id,
        AccessToken.due_at.is_(None),
        AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED,
    )
    db.execute(sa.update(AccessToken).where(is_idle).values(due_at=database.db_now(db)))
