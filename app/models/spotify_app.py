"""Applications at Spotify that people bring themselves."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.clock import utc_now
from app.infra.column_types import ExactString, UTCDateTime, code_string
from app.infra.database import Base

MAX_CLIENT_ID_LENGTH = 255


class AppState(StrEnum):
    """Whether Spotify accepts an application."""

    ACTIVE = "active"
    REFUSED = "refused"  # it was deleted, or its secret is wrong
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"


class SpotifyApp(Base):
    """A person's own application. That of the deployment is in the settings, and has no row.

    Several people may register the same client id: an application in development mode serves five.
    """

    __tablename__ = "spotify_apps"
    # Ids are never reused, so a secret cannot be decrypted in another application's row.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    client_id: Mapped[str] = mapped_column(ExactString(MAX_CLIENT_ID_LENGTH))
    # Encrypted. NULL for a public client, which has none.
    client_secret: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # The key that encrypts it.
    key_id: Mapped[str | None] = mapped_column(code_string(8), index=True)
    state: Mapped[str] = mapped_column(code_string(32), default=AppState.ACTIVE)
    # Until then, nothing is refreshed with this application. NULL if it works.
    paused_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # Since it has worked last: how many attempts have failed, and when the first of them did. NULL if none.
    failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # When this client id was registered. A new secret does not change it.
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)
