import calendar
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.clock import utc_now
from app.infra.database import Base, UTCDateTime, code_string

# How long one caller may keep others from refreshing. It outlasts the 10 s that a call may take.
LEASE = timedelta(seconds=30)
# The furthest ahead that any other time is written: a `Retry-After`, a confirmation, or the end of an
# access token. A time further ahead was written while a clock was wrong, and is not waited for.
LONGEST_WAIT = timedelta(days=1)
# So far the database's clock may step back, as it does when a replica takes over.
CLOCK_TOLERANCE = timedelta(seconds=10)


class GrantState(StrEnum):
    """What Spotify last said about a grant."""

    ACTIVE = "active"
    SUSPECT = "suspect"  # called revoked, not yet confirmed
    REAUTHORIZATION_REQUIRED = "reauthorization_required"


class AccessToken(Base):
    """One grant: what a person's consent gave us. Tokens are sealed (`app.infra.encryption`).

    `grant_id` names the consent and is new with each one; `generation` counts the refreshes of
    that grant. Together they are the fence: a write that names an older pair touches no row.

    Every time that decides something is the database's (`app.infra.database.database_now`).
    """

    __tablename__ = "access_tokens"
    __table_args__ = (sa.Index(None, "state", "ended_at"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    spotify_user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("spotify_users.id", ondelete="CASCADE"), unique=True
    )
    grant_id: Mapped[str] = mapped_column(code_string(32))
    generation: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(code_string(32), default=GrantState.ACTIVE)
    # Empty once they are erased, a week after the grant has ended.
    access_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    refresh_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # A new refresh token that came with an answer too late to be stored. Where tokens are used
    # once it may turn out to be the only good one; it is sealed as a refresh token is.
    spare_refresh_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # The key that all of them are sealed with.
    key_id: Mapped[str | None] = mapped_column(code_string(8), index=True)
    scope: Mapped[str] = mapped_column(sa.String(2048), default="")
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    authorized_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    # When the scheduler looks at it next; empty where there is nothing to do ahead of time.
    due_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    attempt_id: Mapped[str | None] = mapped_column(code_string(32))
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
    def lifetime(self) -> timedelta:
        """How long the access token lives in all."""
        return self.expires_at - (self.refreshed_at or self.authorized_at)

    def is_valid_for(self, lead: timedelta, *, now: datetime) -> bool:
        """Whether the access token outlives `lead` from `now`.

        Half of its life is as much as can be asked for: one that lives for less than the lead
        would never be fresh, and be refreshed at every look.
        """
        if self.access_token is None or not self._has_credible_life(now):
            return False
        return self.expires_at - now > min(lead, self.lifetime / 2)

    def _has_credible_life(self, now: datetime) -> bool:
        """Whether the life began in the past and ends when a life may. Otherwise a clock was wrong."""
        began = self.refreshed_at or self.authorized_at
        return began <= now + CLOCK_TOLERANCE and self.expires_at <= now + LONGEST_WAIT + CLOCK_TOLERANCE

    @classmethod
    def not_leased(cls, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: no attempt to refresh it is under way. The opposite of `is_leased`."""
        return sa.or_(cls.lease_until.is_(None), is_over(cls.lease_until, now, LEASE))

    @classmethod
    def not_backing_off(cls, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: it need not be left alone. The opposite of `is_backing_off`."""
        return sa.or_(cls.not_before.is_(None), is_over(cls.not_before, now))

    @classmethod
    def is_due(cls, by: datetime, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: the scheduler has to look at it by then."""
        return sa.or_(cls.due_at <= by, is_over(cls.due_at, now))

    def is_leased(self, now: datetime) -> bool:
        """Whether an attempt to refresh it is under way, or has died less than a lease ago."""
        return is_ahead(self.lease_until, now, LEASE)

    def is_backing_off(self, now: datetime) -> bool:
        """Whether it must be left alone for now."""
        return is_ahead(self.not_before, now)

    def can_refresh(self, now: datetime) -> bool:
        """Whether an attempt to refresh it could begin now."""
        ended = self.state == GrantState.REAUTHORIZATION_REQUIRED
        return not ended and not self.is_backing_off(now) and not self.is_leased(now)


def is_ahead(moment: datetime | None, now: datetime, longest: timedelta = LONGEST_WAIT) -> bool:
    """Whether a time is still to come, and no further ahead than it can have been written."""
    return moment is not None and now < moment <= now + longest + CLOCK_TOLERANCE


def is_over(
    moment: sa.orm.InstrumentedAttribute[datetime] | sa.orm.InstrumentedAttribute[datetime | None],
    now: datetime,
    longest: timedelta = LONGEST_WAIT,
) -> sa.ColumnElement[bool]:
    """In SQL: the opposite of `is_ahead`, for a column with a value."""
    return sa.or_(moment <= now, moment > now + longest + CLOCK_TOLERANCE)


def six_months_after(moment: datetime) -> datetime:
    """The same day and time six calendar months on, or the month's last day if there is none."""
    month = moment.month + 6
    year, month = (moment.year + 1, month - 12) if month > 12 else (moment.year, month)
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)
