"""Emails that wait in the database until the mail server accepts them.

Any number of processes share the work. A process claims an email by moving `due_at` to the end of a lease, so
the emails of a process that dies become due again.
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
from app.models.outgoing_mail import MAX_TTL
from app.models.times import CLOCK_TOLERANCE

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
# Anyone can request these, in any number, so the other kinds get as much room again.
_REQUESTABLE_BY_ANYONE = (MailKind.PASSWORD_RESET, MailKind.EMAIL_VERIFICATION)
# Longer than sending an email can take: see `app.mail.transport`.
LEASE = timedelta(minutes=10)
# Short at first, because some emails are of use for an hour only, and then as in RFC 5321 section 4.5.4.1.
MIN_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(seconds=5), timedelta(minutes=30)
# How long to keep trying to record that an email was accepted: it would be sent again otherwise.
REMOVE_TIMEOUT_SECONDS = 60.0


def add(
    db: Session, kind: MailKind, *, to: str, user_id: int | None = None, **arguments: str | int
) -> OutgoingMail | None:
    """Store an email in the caller's transaction. Returns None if too many are waiting."""
    now = database.db_now(db)
    limit = MAX_WAITING if kind in _REQUESTABLE_BY_ANYONE else 2 * MAX_WAITING
    # Count no further than the limit, so that a full table does not slow down requests.
    waiting = sa.select(OutgoingMail.id).where(OutgoingMail.expires_at > now).limit(limit).subquery()
    if db.execute(sa.select(sa.func.count()).select_from(waiting)).scalar_one() >= limit:
        log.error("mail_not_sent", extra={"reason": "too many waiting", "mail": kind, "final": True})
        return None
    mail = OutgoingMail(
        message_id=uuid.uuid4().hex,
        kind=kind,
        user_id=user_id,
        recipient=to,
        arguments=json.dumps(arguments),
        due_at=now,
        expires_at=now + kind.ttl,
        created_at=now,
    )
    db.add(mail)
    return mail


def has_due() -> bool:
    """Return whether an email is due."""
    with reading() as db:
        return db.scalar(sa.select(OutgoingMail.id).where(*_is_due(database.db_now(db))).limit(1)) is not None


def claim() -> OutgoingMail | None:
    """Claim the email that has been due the longest, for the duration of a lease."""

    def work(db: Session) -> OutgoingMail | None:
        now = database.db_now(db)
        longest_due = sa.select(OutgoingMail).where(*_is_due(now)).order_by(OutgoingMail.due_at).limit(1)
        mail = db.scalar(longest_due.with_for_update(skip_locked=True))
        if mail is not None:
            mail.due_at, mail.attempts = now + LEASE, mail.attempts + 1
        return mail

    return run_in_transaction(work)


def remove(mail: OutgoingMail) -> None:
    """Delete an email that was accepted, was rejected permanently, or is no longer needed."""
    run_in_transaction_until(
        time.monotonic() + REMOVE_TIMEOUT_SECONDS,
        lambda db: db.execute(sa.delete(OutgoingMail).where(OutgoingMail.id == mail.id)),
    )


def schedule_retry(mail: OutgoingMail) -> None:
    """Make a claimed email due again after a delay that doubles with each attempt."""
    delay = min(MIN_RETRY_DELAY * 2 ** min(mail.attempts - 1, 20), MAX_RETRY_DELAY) * random.uniform(1, 1.25)

    def work(db: Session) -> None:
        # If the lease has ended, another process may have claimed the email since.
        is_ours = OutgoingMail.id == mail.id, OutgoingMail.attempts == mail.attempts
        db.execute(sa.update(OutgoingMail).where(*is_ours).values(due_at=database.db_now(db) + delay))

    run_in_transaction(work, is_idempotent=True)


def drop_expired(db: Session, now: datetime, limit: int) -> int:
    """Delete emails that could not be delivered in time. Returns how many.

    An expiry further ahead than any that this module writes comes from a wrong clock, and is replaced.
    """
    latest = now + MAX_TTL
    too_late = sa.update(OutgoingMail).where(OutgoingMail.expires_at > latest + CLOCK_TOLERANCE)
    db.execute(too_late.values(expires_at=latest))
    expired = sa.select(OutgoingMail).where(OutgoingMail.expires_at <= now).limit(limit)
    mails = list(db.scalars(expired.with_for_update(skip_locked=True)))
    for mail in mails:
        log.error("mail_not_sent", extra={"reason": "expired", "mail": mail.kind, "final": True})
        db.delete(mail)
    return len(mails)


def _is_due(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Return SQL conditions. A time further ahead than any that is written here comes from a wrong clock."""
    due = sa.or_(OutgoingMail.due_at <= now, OutgoingMail.due_at > now + 2 * MAX_RETRY_DELAY)
    return due, OutgoingMail.expires_at > now
