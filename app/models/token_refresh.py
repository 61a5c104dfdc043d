"""The history of refresh attempts."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.column_types import UTCDateTime, code_string
from app.infra.database import Base


class Outcome(StrEnum):
    """How a refresh attempt ended. NULL while it is running, or if it never finished."""

    REFRESHED = "refreshed"
    SUPERSEDED = "superseded"  # the grant changed during the call, so the response was discarded
    INVALID_GRANT = "invalid_grant"
    AGED = "aged"  # invalid_grant too, but expected: six months are over, or it was imported
    RATE_LIMITED = "rate_limited"
    MISCONFIGURED = "misconfigured"
    UNAVAILABLE = "unavailable"


class TokenRefresh(Base):
    """One attempt to refresh a grant.

    `effective` is 1 for the attempt whose response was stored, and NULL for all others. The unique key
    ignores NULLs, so the database itself rejects a second effective refresh of a generation.
    There is no foreign key: the history outlives the connection, and contains nothing personal.
    """

    __tablename__ = "token_refreshes"
    __table_args__ = (
        sa.UniqueConstraint(
            "spotify_user_id", "grant_id", "generation", "effective", name="uq_token_refreshes_effective"
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)
    spotify_user_id: Mapped[int]
    grant_id: Mapped[str] = mapped_column(code_string(32))
    generation: Mapped[int]
    # The own application that it was sent with. NULL if that was the deployment's. No foreign key either.
    spotify_app_id: Mapped[int | None]
    attempt_id: Mapped[str] = mapped_column(code_string(32), unique=True)
    outcome: Mapped[str | None] = mapped_column(code_string(32))
    effective: Mapped[int | None]
    started_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
