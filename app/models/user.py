import secrets
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.clock import utc_now
from app.database import Base, UTCDateTime, code_string, exact_string


def new_session_epoch() -> int:
    """A random number that fits a signed 64-bit column."""
    return secrets.randbits(64) - 2**63


class User(Base):
    """A person with an account here. Name and address are stored in their one normal form."""

    __tablename__ = "users"
    # Ids are never given out twice, so an old session cannot come to mean a new account.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(exact_string(64), unique=True)
    email: Mapped[str] = mapped_column(exact_string(254), unique=True)
    email_verified_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    password_hash: Mapped[str] = mapped_column(code_string(255))
    # A session is valid only while it names this number, so a new number ends all of them, even one that
    # is being stored at that moment. It is random: after a backup is restored, ids are issued a second
    # time, and an old session must not belong to another person.
    session_epoch: Mapped[int] = mapped_column(
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"), default=new_session_epoch, server_default="0"
    )
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)

    @property
    def email_verified(self) -> bool:
        return self.email_verified_at is not None
