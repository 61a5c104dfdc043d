"""Bearer tokens that people create for their scripts, command-line tools, and devices."""

from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.clock import utc_now
from app.infra.column_types import ExactString, UTCDateTime, code_string
from app.infra.database import Base

MAX_NAME_LENGTH = 100
MAX_TOKEN_LIFETIME = timedelta(days=365)


class Right(StrEnum):
    """What a token may be used for."""

    SPOTIFY_READ = "spotify:read"
    SPOTIFY_WRITE = "spotify:write"
    ACCOUNT_READ = "account:read"


class PersonalAccessToken(Base):
    """A bearer token. Only its keyed hash is stored.

    It is valid only while its account has the same `session_epoch`, so it ends with the sessions that were
    signed in when it was created.
    """

    __tablename__ = "personal_access_tokens"
    # Ids are never reused, so a late request to revoke one cannot revoke another.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(code_string(64), unique=True)
    name: Mapped[str] = mapped_column(ExactString(MAX_NAME_LENGTH))
    rights: Mapped[str] = mapped_column(code_string(100))  # separated by spaces
    session_epoch: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer(), "sqlite"))
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    # Written once every few minutes.
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_used_ip: Mapped[str | None] = mapped_column(code_string(45))
