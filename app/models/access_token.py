import calendar
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.clock import utc_now
from app.database import Base, UTCDateTime, exact_string


class GrantState(StrEnum):
    """What Spotify last said about a grant."""

    ACTIVE = "active"
    SUSPECT = "suspect"  # called revoked, not yet confirmed
    REAUTHORIZATION_REQUIRED = "reauthorization_required"


class AccessToken(Base):
    """One grant: what a person's consent gave us. Tokens are sealed (`app.sealing`).

    `grant_id` names the consent and is new with each one; `generation` counts the refreshes of
    that grant. Together they are the fence: a write that names an older pair touches no row.

    Every time that decides something is the database's (`app.database.database_now`).
    """

    __tablename__ = "access_tokens"
    __table_args__ = (sa.Index(None, "state", "ended_at"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    spotify_user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("spotify_users.id", ondelete="CASCADE"), unique=True
    )
    grant_id: Mapped[str] = mapped_column(exact_string(32))
    generation: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(exact_string(32), default=GrantState.ACTIVE)
    # Empty once they are erased, a week after the grant has ended.
    access_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    refresh_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # A new refresh token that came with an answer too late to be stored. Where tokens are used
    # once it may turn out to be the only good one; it is sealed as a refresh token is.
    spare_refresh_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # The key that all of them are sealed with.
    key_id: Mapped[str | None] = mapped_column(exact_string(8), index=True)
    scope: Mapped[str] = mapped_column(sa.String(2048), default="")
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    authorized_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    # When the scheduler looks at it next; empty where there is nothing to do ahead of time.
    due_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    attempt_id: Mapped[str | None] = mapped_column(exact_string(32))
    lease_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    not_before: Mapped[datetime | None] = mapped_column(UTCDateTime)
    failures: Mapped[int] = mapped_column(default=0)
    refreshed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # How many days ahead of its end the last reminder came: 30, 7 or 1.
    reminded_days: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)

    @property
    def scopes(self) -> list[str]:
        return self.scope.split()

    @property
    def reauthorize_by(self) -> datetime:
        """When Spotify ends the grant: six months after the consent, whatever was refreshed since.

        Source: https://developer.spotify.com/blog/2026-06-18-refresh-token-expiration
        """
        return six_months_after(self.authorized_at)

    @property
    def life(self) -> timedelta:
        """How long the access token lives in all."""
        return self.expires_at - (self.refreshed_at or self.authorized_at)

    def lasts(self, lead: timedelta, *, now: datetime) -> bool:
        """Whether the access token outlives `lead` from `now`.

        Half of its life is as much as can be asked for: one that lives for less than the lead
        would never be fresh, and be refreshed at every look.
        """
        if self.access_token is None:
            return False
        return self.expires_at - now > min(lead, self.life / 2)

    @classmethod
    def has_no_lease(cls, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: no attempt to refresh it is under way. The opposite of `is_leased`."""
        return sa.or_(cls.lease_until.is_(None), cls.lease_until < now)

    @classmethod
    def has_no_pause(cls, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: it need not be left alone."""
        return sa.or_(cls.not_before.is_(None), cls.not_before <= now)

    def is_leased(self, now: datetime) -> bool:
        """Whether an attempt to refresh it is under way, or has died less than a lease ago."""
        return self.lease_until is not None and self.lease_until >= now

    def may_be_tried(self, now: datetime) -> bool:
        """Whether an attempt to refresh it could begin now."""
        waits = self.not_before is not None and self.not_before > now
        return self.state != GrantState.REAUTHORIZATION_REQUIRED and not waits and not self.is_leased(now)


def six_months_after(moment: datetime) -> datetime:
    """The same day and time six calendar months on, or the month's last day if there is none."""
    month = moment.month + 6
    year, month = (moment.year + 1, month - 12) if month > 12 else (moment.year, month)
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)
