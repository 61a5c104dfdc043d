"""Emails that wait to be sent."""

from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.clock import utc_now
from app.infra.column_types import ExactString, UTCDateTime, code_string
from app.infra.database import Base

MAX_TTL = timedelta(days=4)  # RFC 5321 section 4.5.4.1: 4 to 5 days


class MailKind(StrEnum):
    """The kinds of emails. `app.user.emails` has the texts."""

    PASSWORD_RESET = "password_reset"  # noqa: S105
    EMAIL_VERIFICATION = "email_verification"
    EMAIL_CHANGE_REQUESTED = "email_change_requested"
    EMAIL_CHANGED = "email_changed"
    EMAIL_CHANGE_UNDONE = "email_change_undone"
    EMAIL_SET_BY_OPERATOR = "email_set_by_operator"
    USERNAME_CHANGED = "username_changed"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    PERSONAL_ACCESS_TOKEN_CREATED = "personal_access_token_created"  # noqa: S105
    SPOTIFY_SIGN_IN_ADDED = "spotify_sign_in_added"
    SPOTIFY_SIGN_IN_REMOVED = "spotify_sign_in_removed"
    ACCOUNT_DELETED = "account_deleted"
    SPOTIFY_ENDS_SOON = "spotify_ends_soon"
    SPOTIFY_APP_REFUSED = "spotify_app_refused"

    @property
    def ttl(self) -> timedelta:
        """How long delivery is attempted: less long where the person will soon ask for another email."""
        return _TTL.get(self, MAX_TTL)


_TTL = {MailKind.PASSWORD_RESET: timedelta(hours=1), MailKind.EMAIL_VERIFICATION: timedelta(days=1)}


class OutgoingMail(Base):
    """An email that the mail server has not accepted yet. See `app.mail.outbox`.

    The row holds no secret: the text, with any token in it, is written at delivery.
    """

    __tablename__ = "outgoing_mails"
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    # The same in every attempt, so that mail programs can recognize an email that arrives twice.
    message_id: Mapped[str] = mapped_column(code_string(32), unique=True)
    kind: Mapped[str] = mapped_column(code_string(32))
    # Null if the account is gone, or if the row must not depend on whether there is an account.
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    recipient: Mapped[str] = mapped_column(ExactString(320), index=True)
    arguments: Mapped[str] = mapped_column(sa.String(1000))  # other values for the text, as JSON
    attempts: Mapped[int] = mapped_column(default=0)
    # The time of the next attempt; during an attempt, the end of its lease.
    due_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
