"""Tokens that are sent by email."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.column_types import ExactString, UTCDateTime, code_string
from app.infra.database import Base


class Purpose(StrEnum):
    """The purpose of a token."""

    PASSWORD_RESET = "password_reset"  # noqa: S105
    EMAIL_VERIFICATION = "email_verification"
    EMAIL_CHANGE = "email_change"  # restores the address that it was sent to


class OneTimeToken(Base):
    """A token that was sent by email. Presenting it proves access to that mailbox.

    Only its hash is stored. `email` is the address it was sent to in its normal form, `email_address` as it
    was entered.
    """

    __tablename__ = "one_time_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[str] = mapped_column(code_string(32))
    token_hash: Mapped[str] = mapped_column(code_string(64), unique=True)
    email: Mapped[str] = mapped_column(ExactString(254), index=True)
    email_address: Mapped[str | None] = mapped_column(ExactString(254))
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
