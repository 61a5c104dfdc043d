import secrets
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.clock import utc_now
from app.infra.database import Base, ExactString, UTCDateTime, code_string
from app.models import normalization


def new_session_epoch() -> int:
    """A random number that fits a signed 64-bit column."""
    return secrets.randbits(64) - 2**63


class User(Base):
    """A person with an account here. `username`, `email` and `pending_email` are in their normal form."""

    __tablename__ = "users"
    # Ids are never given out twice, so an old session cannot come to mean a new account.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(ExactString(64), unique=True)
    email: Mapped[str] = mapped_column(ExactString(254), unique=True)
    # As it was entered, for sending. Null for accounts that an earlier release created.
    email_address: Mapped[str | None] = mapped_column(ExactString(254))
    email_verified_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # A new address that replaces a verified one as soon as it is verified itself. Until then it does not
    # count: it is not reserved, and no one signs in or resets a password with it.
    pending_email: Mapped[str | None] = mapped_column(ExactString(254))
    pending_email_address: Mapped[str | None] = mapped_column(ExactString(254))
    password_hash: Mapped[str] = mapped_column(code_string(255))
    # A session is valid only while it names this number, so a new number ends all of them, even one that
    # is being stored at that moment. It is random: after a backup is restored, ids are issued a second
    # time, and an old session must not belong to another person.
    session_epoch: Mapped[int] = mapped_column(
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"), default=new_session_epoch, server_default="0"
    )
    # An operator disabled the account: it cannot be signed in to.
    disabled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)

    @property
    def email_verified(self) -> bool:
        return self.email_verified_at is not None

    @property
    def disabled(self) -> bool:
        return self.disabled_at is not None

    @property
    def mail_to(self) -> str:
        """The address that mail is sent to.

        A release that does not know `email_address` may run next to this one and change `email` alone.
        """
        entered = self.email_address
        if entered is not None and self.email in normalization.spellings(entered):
            return entered
        return normalization.sending_form(self.email)

    @property
    def email_to_verify(self) -> str | None:
        """The address whose owner has yet to confirm it, as mail is sent to it."""
        if self.pending_email is not None:
            return self.pending_email_address
        return None if self.email_verified else self.mail_to

    def end_sessions(self) -> None:
        """Make all sessions from before this moment invalid."""
        self.session_epoch = new_session_epoch()

    def set_email(self, entered: str, *, verified_at: datetime | None) -> None:
        """Replace the address, and forget a pending one."""
        self.email, self.email_address = normalization.address_form(entered), entered
        self.email_verified_at = verified_at
        self.set_pending_email(None)

    def set_pending_email(self, entered: str | None) -> None:
        """Note an address that is to replace the current one, or forget it."""
        self.pending_email_address = entered
        self.pending_email = normalization.address_form(entered) if entered is not None else None
