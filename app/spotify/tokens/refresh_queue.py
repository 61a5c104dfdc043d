"""The scheduler's work list: the rows of `access_tokens` whose `due_at` has come.

A scheduler reserves a batch by moving its `due_at` ahead; nobody else sees it until then. One that
dies leaves nothing behind but that. Requests do not look at `due_at`: they refresh when they must.
"""

import time
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import reading, run_in_transaction, writing
from app.models import AccessToken, GrantState, SpotifyUser
from app.services import services
from app.spotify.tokens import transitions

CLAIM_DURATION = timedelta(seconds=30)


def claim_batch(limit: int, due_by: datetime) -> list[int]:
    """Take up to so many links that were due then, soonest deadline first. Any number of schedulers may."""
    for _ in range(100):
        candidates, taken = run_in_transaction(lambda db: _take(db, limit, due_by))
        if taken or not candidates:
            return taken
        time.sleep(0.01)  # Others have locked every one of them, and are about to move them on.
    return []


def _take(db: Session, limit: int, due_by: datetime) -> tuple[int, list[int]]:
    now = database.db_now(db)
    is_due = (AccessToken.is_due(due_by, now), AccessToken.has_no_lease(now))
    # Those that fail let the others go first: among many that are refused, the next probe of the
    # breaker has to be another one.
    order = (AccessToken.failures, AccessToken.expires_at)
    ids = list(db.scalars(sa.select(AccessToken.id).where(*is_due).order_by(*order).limit(limit)))
    if not ids:
        return 0, []
    # In a statement of its own: locking while sorting would lock every row that is due.
    free = sa.select(AccessToken.id, AccessToken.spotify_user_id).where(AccessToken.id.in_(ids), *is_due)
    taken = db.execute(free.order_by(*order).with_for_update(skip_locked=True)).all()
    mine = AccessToken.id.in_([row_id for row_id, _ in taken])
    db.execute(sa.update(AccessToken).where(mine).values(due_at=now + CLAIM_DURATION))
    return len(ids), [link_id for _, link_id in taken]


def release(link_id: int) -> None:
    """Let others have what was reserved and not refreshed, unless it has been rescheduled since."""
    with writing() as db:
        at = database.db_now(db)
        reserved = (
            AccessToken.spotify_user_id == link_id,
            AccessToken.due_at <= at + CLAIM_DURATION,
            AccessToken.has_no_pause(at),
        )
        db.execute(sa.update(AccessToken).where(*reserved).values(due_at=at))


def reschedule(row: AccessToken) -> None:
    """Look at a link again when its token will be due: somebody else has refreshed it meanwhile."""
    later = transitions.next_refresh_at(row.expires_at, row.life, services().config.refresh_lead)
    same = (AccessToken.grant_id == row.grant_id, AccessToken.generation == row.generation)
    with writing() as db:
        db.execute(sa.update(AccessToken).where(AccessToken.id == row.id, *same).values(due_at=later))


def count_due() -> int:
    """How many links are due now."""
    with reading() as db:
        now = database.db_now(db)
        return db.execute(sa.select(sa.func.count()).where(AccessToken.is_due(now, now))).scalar_one()


def deactivate_idle(unused_for: timedelta) -> int:
    """Take links off the list that nobody has used for so long, until somebody does. Returns how many."""
    with writing() as db:
        now = database.db_now(db)
        unused = sa.select(SpotifyUser.id).where(SpotifyUser.last_used_at < now - unused_for)
        asleep = db.execute(
            sa.update(AccessToken)
            .where(
                AccessToken.is_due(now, now),
                AccessToken.state == GrantState.ACTIVE,  # a suspect is asked about to the end
                AccessToken.spotify_user_id.in_(unused),
            )
            .values(due_at=None)
            .execution_options(synchronize_session=False)
        )
    return asleep.rowcount  # type: ignore[attr-defined, no-any-return]


def reactivate(db: Session, link_id: int) -> None:
    """Put a link back on the list, if it was asleep."""
    asleep = sa.and_(
        AccessToken.spotify_user_id == link_id,
        AccessToken.due_at.is_(None),
        AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED,
    )
    db.execute(sa.update(AccessToken).where(asleep).values(due_at=database.db_now(db)))
