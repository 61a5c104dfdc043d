"""The scheduler's queue: the rows of `access_tokens` whose `due_at` has passed.

A scheduler claims a batch by moving its `due_at` ahead, which hides it from the others. If the scheduler
dies, the batch becomes due again at that time. Requests ignore `due_at` and refresh when they need to.
"""

import time
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import reading, run_in_transaction, writing
from app.models import AccessToken, GrantState, SpotifyUser
from app.spotify.tokens import transitions

CLAIM_DURATION = timedelta(seconds=30)


def claim_batch(limit: int, due_by: datetime) -> list[int]:
    """Claim up to `limit` connections that were due by then, and return their ids, next to expire first.

    Any number of schedulers can do this at the same time.
    """
    for _ in range(100):
        candidates, claimed = run_in_transaction(lambda db: _claim(db, limit, due_by))
        if claimed or not candidates:
            return claimed
        time.sleep(0.01)  # Other schedulers have locked all candidates, and are about to move their `due_at`.
    return []


def _claim(db: Session, limit: int, due_by: datetime) -> tuple[int, list[int]]:
    """Return the number of candidates, and the connections that were claimed."""
    now = database.db_now(db)
    conditions = (AccessToken.is_due(due_by, now), AccessToken.not_leased(now))
    # Those that failed come last: when many are rejected, the breaker's next probe must be another grant.
    order = (AccessToken.failures, AccessToken.expires_at)
    ids = list(db.scalars(sa.select(AccessToken.id).where(*conditions).order_by(*order).limit(limit)))
    if not ids:
        return 0, []
    # In a separate statement: locking while sorting would lock every row that is due.
    unlocked = sa.select(AccessToken.id, AccessToken.spotify_user_id).where(
        AccessToken.id.in_(ids), *conditions
    )
    claimed = db.execute(unlocked.order_by(*order).with_for_update(skip_locked=True)).all()
    own = AccessToken.id.in_([row_id for row_id, _ in claimed])
    db.execute(sa.update(AccessToken).where(own).values(due_at=now + CLAIM_DURATION))
    return len(ids), [spotify_user_id for _, spotify_user_id in claimed]


def release(spotify_user_id: int) -> None:
    """Make a claimed connection available to other schedulers, unless it has been rescheduled since."""

    def work(db: Session) -> None:
        now = database.db_now(db)
        is_claimed = (
            AccessToken.spotify_user_id == spotify_user_id,
            AccessToken.due_at <= now + CLAIM_DURATION,
            AccessToken.not_backing_off(now),
        )
        db.execute(sa.update(AccessToken).where(*is_claimed).values(due_at=now))

    run_in_transaction(work)  # the breaker may be updating the same rows in another order


def reschedule(row: AccessToken, lead: timedelta) -> None:
    """Set `due_at` according to the current token, which another caller has refreshed."""
    due_at = transitions.next_refresh_at(row.expires_at, row.lifetime, lead)
    same = (AccessToken.grant_id == row.grant_id, AccessToken.generation == row.generation)
    update = sa.update(AccessToken).where(AccessToken.id == row.id, *same).values(due_at=due_at)
    run_in_transaction(lambda db: db.execute(update))


def count_due() -> int:
    """Return the number of connections that are due now."""
    with reading() as db:
        now = database.db_now(db)
        return db.execute(sa.select(sa.func.count()).where(AccessToken.is_due(now, now))).scalar_one()


def deactivate_idle(unused_for: timedelta) -> int:
    """Remove connections that were not used for this long, until `reactivate`. Returns their number."""
    with writing() as db:
        now = database.db_now(db)
        unused = sa.select(SpotifyUser.id).where(SpotifyUser.last_used_at < now - unused_for)
        deactivated = db.execute(
            sa.update(AccessToken)
            .where(
                AccessToken.is_due(now, now),
                AccessToken.state == GrantState.ACTIVE,  # suspect grants are confirmed in any case
                AccessToken.spotify_user_id.in_(unused),
            )
            .values(due_at=None)
            .execution_options(synchronize_session=False)
        )
    return deactivated.rowcount  # type: ignore[attr-defined, no-any-return]


def reactivate(db: Session, spotify_user_id: int) -> None:
    """Return a connection to the queue, if it was idle."""
    is_idle = sa.and_(
        AccessToken.spotify_user_id == spotify_user_id,
        AccessToken.due_at.is_(None),
        AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED,
    )
    db.execute(sa.update(AccessToken).where(is_idle).values(due_at=database.db_now(db)))
