"""Mails that wait in the database until the mail server has accepted them.

Any number of processes share the work. A mail is claimed by moving `due_at` to the end of a lease, so
the mails of a process that dies become due again by themselves.
"""

import json
import logging
import random
import time
import uuid
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import reading, run_in_transaction, run_in_transaction_until
from app.models import MailKind, OutgoingMail
from app.models.access_token import CLOCK_TOLERANCE
from app.models.outgoing_mail import LONGEST_USEFUL

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
# Strangers can request these in any number, so they leave room for the others.
_REQUESTED = (MailKind.PASSWORD_RESET, MailKind.EMAIL_VERIFICATION)
# Longer than handing over a mail can take: see the timeouts in `app.mail.mailer`.
LEASE = timedelta(minutes=10)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(minutes=15)
# How long to try to record that a mail was accepted: otherwise it would be sent again.
PATIENCE_SECONDS = 60.0


def add(
    db: Session, kind: MailKind, *, to: str, user_id: int | None = None, **arguments: str | int
) -> OutgoingMail | None:
    """Store a mail in the caller's transaction. Returns None if too many are waiting."""
    now, most = database.db_now(db), MOST_WAITING if kind in _REQUESTED else 2 * MOST_WAITING
    # Counting ends at the limit, so that a full table does not slow down requests.
    waiting = sa.select(OutgoingMail.id).where(OutgoingMail.expires_at > now).limit(most).subquery()
    if db.execute(sa.select(sa.func.count()).select_from(waiting)).scalar_one() >= most:
        log.error("mail_not_sent", extra={"reason": "too many waiting", "mail": kind, "final": True})
        return None
    mail = OutgoingMail(
        message_id=uuid.uuid4().hex,
        kind=kind,
        user_id=user_id,
        recipient=to,
        arguments=json.dumps(arguments),
        due_at=now,
        expires_at=now + kind.useful_for,
        created_at=now,
    )
    db.add(mail)
    return mail


def is_waiting() -> bool:
    """Whether a mail is due."""
    with reading() as db:
        return db.scalar(sa.select(OutgoingMail.id).where(*_due(database.db_now(db))).limit(1)) is not None


def claim() -> OutgoingMail | None:
    """Take the mail that has been due the longest, for a lease's time."""

    def unit(db: Session) -> OutgoingMail | None:
        now = database.db_now(db)
        longest_due = sa.select(OutgoingMail).where(*_due(now)).order_by(OutgoingMail.due_at).limit(1)
        mail = db.scalar(longest_due.with_for_update(skip_locked=True))
        if mail is not None:
            mail.due_at, mail.attempts = now + LEASE, mail.attempts + 1
        return mail

    return run_in_transaction(unit)


def remove(mail: OutgoingMail) -> None:
    """Forget a mail that was accepted, was refused for good, or is no longer needed."""
    run_in_transaction_until(
        time.monotonic() + PATIENCE_SECONDS,
        lambda db: db.execute(sa.delete(OutgoingMail).where(OutgoingMail.id == mail.id)),
    )


def postpone(mail: OutgoingMail) -> None:
    """Try a claimed mail again after a pause that doubles with each attempt."""
    pause = min(FIRST_PAUSE * 2 ** min(mail.attempts - 1, 20), LONGEST_PAUSE) * random.uniform(0.8, 1.2)

    def unit(db: Session) -> None:
        # Unless the lease has ended and another process is trying.
        ours = OutgoingMail.id == mail.id, OutgoingMail.attempts == mail.attempts
        db.execute(sa.update(OutgoingMail).where(*ours).values(due_at=database.db_now(db) + pause))

    run_in_transaction(unit)


def drop_expired(db: Session, now: datetime, limit: int) -> int:
    """Delete mails whose time has passed without a delivery.

    A time further ahead than we ever write is from a clock that was wrong, and starts again.
    """
    latest = now + LONGEST_USEFUL
    too_late = sa.update(OutgoingMail).where(OutgoingMail.expires_at > latest + CLOCK_TOLERANCE)
    db.execute(too_late.values(expires_at=latest))
    expired = sa.select(OutgoingMail).where(OutgoingMail.expires_at <= now).limit(limit)
    mails = list(db.scalars(expired.with_for_update(skip_locked=True)))
    for mail in mails:
        log.error("mail_not_sent", extra={"reason": "expired", "mail": mail.kind, "final": True})
        db.delete(mail)
    return len(mails)


def _due(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """In SQL: an attempt is due. A time further ahead than we ever write is from a clock that was wrong."""
    due = sa.or_(OutgoingMail.due_at <= now, OutgoingMail.due_at > now + 2 * LONGEST_PAUSE)
    return due, OutgoingMail.expires_at > now
