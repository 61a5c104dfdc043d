"""Hourly maintenance: sends reminders, and deletes what is no longer needed.

Each task may run in several processes at the same time, and again after it was interrupted.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import Base, run_in_transaction
from app.infra.row_versions import announce
from app.mail import outbox
from app.mail.mailer import Mailer
from app.models import (
    AccessToken,
    GrantState,
    MailKind,
    OneTimeToken,
    PersonalAccessToken,
    SpotifyUser,
    TokenRefresh,
    User,
)
from app.models.personal_access_token import MAX_TOKEN_LIFETIME
from app.models.times import CLOCK_TOLERANCE, is_over

log = logging.getLogger(__name__)

Task = Callable[[Session, datetime], int]

# After this time an ended grant is beyond doubt, and its tokens are useless.
ERASE_AFTER = timedelta(days=7)
# Of the history of refreshes. Nearly all of them succeed, and nothing asks about those of more than
# a day ago. The others show what went wrong, and the breaker asks whether a grant was rejected before.
KEEP_SUCCESSES_FOR, KEEP_HISTORY_FOR = timedelta(days=3), timedelta(days=30)
REMINDER_DAYS = (1, 7, 30)
# The longest TTL of an emailed token is seven days. One more in case the database's clock steps back.
ONE_TIME_TOKEN_MAX_TTL = timedelta(days=8)
SHORTEST_SIX_MONTHS, SURELY_ENDED_AFTER = timedelta(days=181), timedelta(days=190)
# Rows that are written in one transaction: few enough that no other transaction waits long.
BATCH = 500
# If a task has more to do, it continues in the next run, in an hour.
MAX_TASK_SECONDS = 1800.0
_NEVER = datetime(2000, 1, 1, tzinfo=UTC)


class Maintenance:
    """Runs all maintenance tasks.

    `visitor_ttl` is how long a visitor's session can reach a connection after it was last used.
    """

    def __init__(self, mailer: Mailer, visitor_ttl: timedelta) -> None:
        self._mailer = mailer
        self._visitor_ttl = visitor_ttl
        self._no_successes_before = _NEVER  # in the history
        self._tasks: tuple[Task, ...] = (
            correct_times,
            end_unused,
            erase_ended,
            self.prune_visitors,
            prune_one_time_tokens,
            prune_personal_access_tokens,
            drop_expired_mails,
            self.remind,
            prune_history,
            self.prune_successes,  # last, because it has the most to do
        )

    def run(self, stopping: threading.Event | None = None) -> dict[str, int]:
        """Run every task, in small transactions. Returns the number of rows that each has handled."""
        counts: dict[str, int] = {}
        for task in self._tasks:
            name = task.__name__
            try:
                counts[name] = _run_in_batches(task, stopping or threading.Event())
            except sa.exc.SQLAlchemyError as error:
                # The other tasks still run: this one may fail every hour.
                log.error("maintenance_failed", extra={"task": name, "reason": type(error).__name__})
        if any(counts.values()):
            log.info("maintenance", extra=counts)
        return counts

    def remind(self, db: Session, now: datetime) -> int:
        """Remind people 30, 7, and 1 days before their grant ends, at most once each.

        The reminder is mailed if the address is verified. `GET /api/spotify` shows `reauthorize_by` to all.
        """
        return sum(self._remind(db, now, days) for days in REMINDER_DAYS)

    def _remind(self, db: Session, now: datetime, days: int) -> int:
        ends_by = now + timedelta(days=days)
        candidates = (
            sa.select(AccessToken.id)
            .where(
                AccessToken.state != GrantState.REAUTHORIZATION_REQUIRED,
                AccessToken.is_dated(),
                AccessToken.authorized_at <= ends_by - SHORTEST_SIX_MONTHS,
                sa.or_(AccessToken.reminded_days.is_(None), AccessToken.reminded_days > days),
            )
            .order_by(AccessToken.authorized_at)
            .limit(BATCH)
        )
        # In a separate statement: locking while sorting would lock every candidate.
        ids = AccessToken.id.in_(list(db.scalars(candidates)))
        locked = db.scalars(sa.select(AccessToken).where(ids).with_for_update(skip_locked=True))
        ending = [(row, end) for row in locked if (end := row.reauthorize_by) is not None and end <= ends_by]
        for row, end in ending:
            row.reminded_days = days
            log.warning(
                "spotify_grant_ends_soon", extra={"spotify_user_id": row.spotify_user_id, "days": days}
            )
            self._mail_owner(db, row, end)
        return len(ending)

    def _mail_owner(self, db: Session, row: AccessToken, end: datetime) -> None:
        if not self._mailer.is_configured:
            return
        owner = db.scalar(
            sa.select(User)
            .join(SpotifyUser, SpotifyUser.user_id == User.id)
            .where(
                SpotifyUser.id == row.spotify_user_id,
                User.email_verified_at.is_not(None),
                User.disabled_at.is_(None),
            )
        )
        if owner is not None:
            kind = MailKind.SPOTIFY_ENDS_SOON
            self._mailer.enqueue(db, kind, to=owner.mail_to, user_id=owner.id, expires_at=end.isoformat())

    def prune_successes(self, db: Session, now: datetime) -> int:
        """Delete refreshes that succeeded more than three days ago, oldest first.

        It begins where the last batch began: what is kept in front of that would take longer and longer to
        read. If that batch was rolled back, this is the same one.
        """
        oldest = (
            sa.select(TokenRefresh.id, TokenRefresh.started_at)
            .where(
                TokenRefresh.started_at >= self._no_successes_before,
                TokenRefresh.started_at < now - KEEP_SUCCESSES_FOR,
                TokenRefresh.effective == 1,
            )
            .order_by(TokenRefresh.started_at)
            .limit(BATCH)
        )
        found = db.execute(oldest.with_for_update(skip_locked=True)).all()
        if found:
            self._no_successes_before = found[0].started_at
            ids = TokenRefresh.id.in_([row.id for row in found])
            db.execute(sa.delete(TokenRefresh).where(ids).execution_options(synchronize_session=False))
        return len(found)

    def prune_visitors(self, db: Session, now: datetime) -> int:
        """Delete connections that have no owner and that no session can reach anymore."""
        is_unreachable = SpotifyUser.user_id.is_(None), SpotifyUser.last_used_at < now - self._visitor_ttl
        return _change_rows(db, sa.delete(SpotifyUser), *is_unreachable)


def correct_times(db: Session, now: datetime) -> int:
    """Set recorded times that lie in the future to now: a clock was ahead when they were written.

    They would keep an unused connection active, an ended grant's tokens stored, and an attempt in the
    history. (Times that are meant to lie ahead are bounded when read, as in `AccessToken.is_backing_off`.)
    """
    latest, count = now + CLOCK_TOLERANCE, 0
    for column, condition in (
        (SpotifyUser.last_used_at, sa.true()),
        # Before the first refresh, the token's lifetime is counted from the consent (`AccessToken.lifetime`).
        (AccessToken.authorized_at, AccessToken.refreshed_at <= latest),
        (AccessToken.ended_at, sa.true()),
        (TokenRefresh.started_at, sa.true()),
    ):
        count += _change_rows(
            db, sa.update(column.class_).values({column.key: now}), column > latest, condition
        )
    return count


def end_unused(db: Session, now: datetime) -> int:
    """End unused grants whose six months have passed. Without refreshes, Spotify cannot report that.

    Those of an undated grant have passed six months after the import at the latest.
    """
    is_unused = AccessToken.due_at.is_(None), AccessToken.state == GrantState.ACTIVE
    has_ended = AccessToken.authorized_at <= now - SURELY_ENDED_AFTER
    ended = {"state": GrantState.REAUTHORIZATION_REQUIRED, "ended_at": now}
    return _change_rows(db, sa.update(AccessToken).values(ended), *is_unused, has_ended)


def erase_ended(db: Session, now: datetime) -> int:
    """Erase the tokens of grants that ended a week ago. The connection stays and can be authorized again."""
    empty = dict.fromkeys(("access_token", "refresh_token", "spare_refresh_token", "key_id"))
    return _change_rows(
        db,
        sa.update(AccessToken).values(empty),
        AccessToken.state == GrantState.REAUTHORIZATION_REQUIRED,
        AccessToken.ended_at <= now - ERASE_AFTER,
        AccessToken.refresh_token.is_not(None),
    )


def prune_history(db: Session, now: datetime) -> int:
    """Delete all other refresh attempts that are older than 30 days."""
    return _change_rows(db, sa.delete(TokenRefresh), TokenRefresh.started_at < now - KEEP_HISTORY_FOR)


def prune_one_time_tokens(db: Session, now: datetime) -> int:
    """Delete emailed tokens that have expired, or whose expiry is further ahead than any TTL."""
    return _change_rows(
        db, sa.delete(OneTimeToken), is_over(OneTimeToken.expires_at, now, ONE_TIME_TOKEN_MAX_TTL)
    )


def prune_personal_access_tokens(db: Session, now: datetime) -> int:
    """Delete personal access tokens that have expired, or whose expiry is further ahead than any lifetime."""
    return _change_rows(
        db, sa.delete(PersonalAccessToken), is_over(PersonalAccessToken.expires_at, now, MAX_TOKEN_LIFETIME)
    )


def drop_expired_mails(db: Session, now: datetime) -> int:
    """Delete emails that could not be delivered while they were useful."""
    return outbox.drop_expired(db, now, BATCH)


def _run_in_batches(task: Task, stopping: threading.Event) -> int:
    total, until = 0, time.monotonic() + MAX_TASK_SECONDS
    while not stopping.is_set() and time.monotonic() < until:
        count = run_in_transaction(lambda db: task(db, database.db_now(db)))
        total += count
        if count < BATCH:
            break
    return total


def _change_rows(db: Session, change: sa.Update | sa.Delete, *conditions: sa.ColumnElement[bool]) -> int:
    """Update or delete a batch of the rows that meet these conditions. Returns their number.

    In two statements, because MySQL supports neither LIMIT nor a subquery on the same table in the second.
    """
    model = change.entity_description["entity"]
    selected = sa.select(model.id).where(*conditions).limit(BATCH)
    ids = list(db.scalars(selected.with_for_update(skip_locked=True)))
    if ids:
        _announce(db, model, ids)
        db.execute(change.where(model.id.in_(ids)).execution_options(synchronize_session=False))
    return len(ids)


def _announce(db: Session, model: type[Base], ids: list[int]) -> None:
    """Announce that rows are about to change, if requests remember them."""
    connections = ids if model is SpotifyUser else []
    if model is AccessToken:
        connections = list(db.scalars(sa.select(AccessToken.spotify_user_id).where(AccessToken.id.in_(ids))))
    announce(db, connections=connections, best_effort=True)
