"""What custody owes over time: reminders, and that nothing is kept longer than it is needed.

Every part may run in several processes at once, and again after it was stopped.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import run_in_transaction
from app.mail import outbox
from app.models import AccessToken, GrantState, MailKind, OneTimeToken, SpotifyUser, TokenRefresh, User
from app.models.access_token import CLOCK_TOLERANCE, is_over
from app.services import services

log = logging.getLogger(__name__)

# After this a grant that has ended is beyond doubt, and its tokens are of no use to anybody.
ERASED_AFTER = timedelta(days=7)
HISTORY_KEPT_FOR = timedelta(days=30)
REMINDER_DAYS = (1, 7, 30)
# No mailed token lives longer: seven days, and one more in case the database's clock steps back.
ONE_TIME_TOKENS_END = timedelta(days=8)
SHORTEST_SIX_MONTHS, SURELY_ENDED_AFTER = timedelta(days=181), timedelta(days=190)
# Rows written in one transaction: few enough that nobody waits for it.
BATCH = 500


def run(stopping: threading.Event | None = None) -> dict[str, int]:
    """Do all of it, in small transactions. Returns how many rows each part has met."""
    met: dict[str, int] = {}
    for part in (
        correct_times,
        end_forgotten,
        erase_ended,
        prune_history,
        prune_visitors,
        prune_one_time_tokens,
        drop_expired_mails,
        remind,
    ):
        try:
            met[part.__name__] = _in_batches(part, stopping or threading.Event())
        except sa.exc.SQLAlchemyError as error:
            # One part's trouble must not keep the others from their work, hour after hour.
            log.error("upkeep_failed", extra={"part": part.__name__, "reason": type(error).__name__})
    if any(met.values()):
        log.info("upkeep", extra=met)
    return met


def _in_batches(part: Callable[[Session, datetime], int], stopping: threading.Event) -> int:
    met = 0
    while not stopping.is_set():
        batch = run_in_transaction(lambda db: part(db, database.db_now(db)))
        met += batch
        if batch < BATCH:
            break
    return met


def correct_times(db: Session, now: datetime) -> int:
    """Set to now what is recorded as later than now: a clock was ahead when it was written.

    Until then it would keep an unused link alive, an ended grant's tokens in place, and an attempt in
    the history. (Times that lie ahead by design are read with care instead, as in `AccessToken.is_paused`.)
    """
    late, met = now + CLOCK_TOLERANCE, 0
    for column, condition in (
        (SpotifyUser.last_used_at, sa.true()),
        # Before the first refresh a token's life is counted from the consent; see `AccessToken.lasts`.
        (AccessToken.authorized_at, AccessToken.refreshed_at <= late),
        (AccessToken.ended_at, sa.true()),
        (TokenRefresh.started_at, sa.true()),
    ):
        model = column.class_
        wrong = sa.select(model.id).where(column > late, condition).limit(BATCH)
        met += _write(db, wrong, sa.update(model).values({column.key: now}), model.id)
    return met


def remind(db: Session, now: datetime) -> int:
    """Record and tell that grants end in 30, 7 or 1 days: the nearest of them, once.

    By mail, where the address is verified; everybody sees `reauthorize_by` in `GET /api/spotify`.
    """
    return sum(_remind(db, now, days) for days in REMINDER_DAYS)


def _remind(db: Session, now: datetime, days: int) -> int:
    due_by = now + timedelta(days=days)
    candidates = (
        sa.select(AccessToken.id)
        .where(
            AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED,
            AccessToken.authorized_at <= due_by - SHORTEST_SIX_MONTHS,
            sa.or_(AccessToken.reminded_days.is_(None), AccessToken.reminded_days > days),
        )
        .order_by(AccessToken.authorized_at)
        .limit(BATCH)
    )
    # In a statement of its own: locking while sorting would lock every candidate there is.
    ids = AccessToken.id.in_(list(db.scalars(candidates)))
    locked = db.scalars(sa.select(AccessToken).where(ids).with_for_update(skip_locked=True))
    due = [row for row in locked if row.reauthorize_by <= due_by]
    for row in due:
        row.reminded_days = days
        log.warning("spotify_grant_ends_soon", extra={"link": row.spotify_user_id, "days": days})
        _mail_owner(db, row)
    return len(due)


def _mail_owner(db: Session, row: AccessToken) -> None:
    """Mail the reminder, if there is an address that is known to be the owner's."""
    owner = db.scalar(
        sa.select(User)
        .join(SpotifyUser, SpotifyUser.user_id == User.id)
        .where(
            SpotifyUser.id == row.spotify_user_id,
            User.email_verified_at.is_not(None),
            User.disabled_at.is_(None),
        )
    )
    if owner is not None and services().mailer.is_configured:
        kind, expires_at = MailKind.SPOTIFY_ENDS_SOON, row.reauthorize_by.isoformat()
        services().mailer.enqueue(db, kind, to=owner.mail_to, user_id=owner.id, expires_at=expires_at)


def end_forgotten(db: Session, now: datetime) -> int:
    """End grants that nobody has used for so long that nobody asked Spotify when their six months ended."""
    forgotten = (
        sa.select(AccessToken.id)
        .where(
            AccessToken.due_at.is_(None),
            AccessToken.state == GrantState.ACTIVE,
            AccessToken.authorized_at <= now - SURELY_ENDED_AFTER,
        )
        .limit(BATCH)
    )
    ended = {"state": GrantState.REAUTHORIZATION_REQUIRED, "ended_at": now}
    return _write(db, forgotten, sa.update(AccessToken).values(ended), AccessToken.id)


def erase_ended(db: Session, now: datetime) -> int:
    """Erase the tokens of grants that ended a week ago. The link stays, to be connected again."""
    ended = (
        sa.select(AccessToken.id)
        .where(
            AccessToken.state == GrantState.REAUTHORIZATION_REQUIRED,
            AccessToken.ended_at <= now - ERASED_AFTER,
            AccessToken.refresh_token.is_not(None),
        )
        .limit(BATCH)
    )
    empty = dict.fromkeys(("access_token", "refresh_token", "spare_refresh_token", "key_id"))
    return _write(db, ended, sa.update(AccessToken).values(empty), AccessToken.id)


def prune_history(db: Session, now: datetime) -> int:
    """Delete attempts that began a month ago."""
    old = sa.select(TokenRefresh.id).where(TokenRefresh.started_at < now - HISTORY_KEPT_FOR).limit(BATCH)
    return _write(db, old, sa.delete(TokenRefresh), TokenRefresh.id)


def prune_visitors(db: Session, now: datetime) -> int:
    """Delete links that belong to no account and that no session can reach any more."""
    unreachable = now - timedelta(seconds=services().config.session_max_seconds)
    idle = (
        sa.select(SpotifyUser.id)
        .where(SpotifyUser.user_id.is_(None), SpotifyUser.last_used_at < unreachable)
        .limit(BATCH)
    )
    return _write(db, idle, sa.delete(SpotifyUser), SpotifyUser.id)


def prune_one_time_tokens(db: Session, now: datetime) -> int:
    """Delete mailed tokens that have expired, or would not for longer than any lives."""
    expired = (
        sa.select(OneTimeToken.id)
        .where(is_over(OneTimeToken.expires_at, now, ONE_TIME_TOKENS_END))
        .limit(BATCH)
    )
    return _write(db, expired, sa.delete(OneTimeToken), OneTimeToken.id)


def drop_expired_mails(db: Session, now: datetime) -> int:
    """Delete mails that could not be delivered for as long as they were useful."""
    return outbox.drop_expired(db, now, BATCH)


def _write(
    db: Session, which: sa.Select[int], change: sa.Update | sa.Delete, key: sa.orm.InstrumentedAttribute[int]
) -> int:
    """Make the change to the rows selected. MySQL can neither limit nor select from its own table there."""
    ids = list(db.scalars(which.with_for_update(skip_locked=True)))
    if ids:
        db.execute(change.where(key.in_(ids)).execution_options(synchronize_session=False))
    return len(ids)
