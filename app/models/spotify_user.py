"""Spotify accounts that are connected here."""

import re
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.infra.clock import utc_now
from app.infra.column_types import ExactString, UTCDateTime
from app.infra.database import Base
from app.models.access_token import AccessToken

# What is stored as the Spotify id of an account while its id is not known.
_PLACEHOLDER = re.compile(r"(?:imported|replaced):")


def unidentified_name(user_id: int) -> str:
    """Return the placeholder for a user's imported connection."""
    return f"imported:{user_id}"


def replaced_name(spotify_user_id: int) -> str:
    """Return the placeholder for a connection whose Spotify id has passed to another account."""
    return f"replaced:{spotify_user_id}"


def is_placeholder(spotify_id: str) -> bool:
    """Return whether a Spotify id is one of these placeholders."""
    return _PLACEHOLDER.match(spotify_id) is not None


class SpotifyUser(Base):
    """A connection: a Spotify account and the user who owns it. `user_id` is NULL if a visitor connected it.

    `account_id` is the stable key. `spotify_id` may change, and is stored because playlists name their owner
    by it.
    """

    __tablename__ = "spotify_users"
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    # The application that the connection was made with. NULL if it is the deployment's.
    spotify_app_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("spotify_apps.id", ondelete="CASCADE"), index=True
    )
    spotify_id: Mapped[str] = mapped_column(ExactString(255), unique=True)
    account_id: Mapped[str | None] = mapped_column(ExactString(255), unique=True)
    display_name: Mapped[str | None] = mapped_column(sa.String(255))
    image_url: Mapped[str | None] = mapped_column(sa.String(2048))
    product: Mapped[str | None] = mapped_column(sa.String(32))
    country: Mapped[str | None] = mapped_column(sa.String(8))
    # When the owner, who had just signed in, connected it. Since then, it signs them in. Null: it does not,
    # for example because a visitor connected it, who may have been someone else.
    sign_in_since: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)
    last_used_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    # When to ask Spotify whose grant was imported (`app.imports.profiles`). NULL once that is known.
    profile_due_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)

    token: Mapped[AccessToken] = relationship(lazy="joined", innerjoin=True, passive_deletes=True)

    @property
    def is_unidentified(self) -> bool:
        """Whether it is not known yet which Spotify account this is."""
        return self.user_id is not None and self.spotify_id == unidentified_name(self.user_id)
