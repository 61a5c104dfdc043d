"""Grants: the tokens that a person's consent has produced."""

import calendar
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.infra.clock import utc_now
from app.infra.column_types import ExactString, UTCDateTime, code_string
from app.infra.database import Base
from app.models.times import CLOCK_TOLERANCE, LONGEST_WAIT, is_ahead, is_over

# How long one caller can keep others from refreshing. Longer than the 10 s that a call can take.
LEASE = timedelta(seconds=30)


class GrantState(StrEnum):
    """Whether Spotify accepts a grant."""

    ACTIVE = "active"
    SUSPECT = "suspect"  # rejected, but not confirmed twice yet
    REAUTHORIZATION_REQUIRED = "reauthorization_required"


class TokenTimes(Protocol):
    """What decides whether an access token is still valid."""

    @property
    def access_token(self) -> bytes | None:
        """The encrypted token, or None if it has been erased."""

    @property
    def authorized_at(self) -> datetime:
        """When the person consented."""

    @property
    def refreshed_at(self) -> datetime | None:
        """When it was last refreshed, if ever."""

    @property
    def expires_at(self) -> datetime:
        """When it expires."""


class AccessToken(Base):
    """A connection's grant, with encrypted tokens (`app.infra.encryption`).

    `grant_id` identifies the consent, and `generation` counts the refreshes of that grant. Every write names
    both, so one that is based on an older state changes no row.

    All times that decisions depend on are the database's (`app.infra.database.database_now`).
    """

    __tablename__ = "access_tokens"
    __table_args__ = (
        sa.Index(None, "state", "ended_at"),
        sa.Index(None, "failures", "due_at", "expires_at"),  # the scheduler's queue
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    spotify_user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("spotify_users.id", ondelete="CASCADE"), unique=True
    )
    grant_id: Mapped[str] = mapped_column(code_string(32))
    generation: Mapped[int] = mapped_column(default=0)
    # The application that the grant was issued to. NULL if it is the deployment's. The tokens are encrypted
    # for it too, so they cannot be sent with another client id. An earlier release, which does not know
    # this column, cannot decrypt them, and so leaves the grant alone.
    client_id: Mapped[str | None] = mapped_column(ExactString(255))
    state: Mapped[str] = mapped_column(code_string(32), default=GrantState.ACTIVE)
    # NULL once they are erased, a week after the grant ended.
    access_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    refresh_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # A new refresh token whose response came too late to be stored, encrypted as `refresh_token`. If Spotify
    # accepts each token only once, it may be the only valid one.
    spare_refresh_token: Mapped[bytes | None] = mapped_column(sa.LargeBinary(16_384))
    # The key that encrypts all three.
    key_id: Mapped[str | None] = mapped_column(code_string(8), index=True)
    scope: Mapped[str] = mapped_column(sa.String(2048), default="")
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    # The latest time at which the consent can have been given: when the grant was imported, if it is undated.
    authorized_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    # The grant that was imported without the time of the consent. Not a flag, because a release without this
    # column may store a later consent: then this is not the current grant.
    undated_grant_id: Mapped[str | None] = mapped_column(code_string(32))
    # When the scheduler refreshes it next. NULL if it does not.
    due_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    attempt_id: Mapped[str | None] = mapped_column(code_string(32))
    lease_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    not_before: Mapped[datetime | None] = mapped_column(UTCDateTime)
    failures: Mapped[int] = mapped_column(default=0)
    refreshed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # How many days before its end the last reminder was sent: 30, 7, or 1.
    reminded_days: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utc_now, onupdate=utc_now)

    @property
    def scopes(self) -> list[str]:
        """The granted scopes."""
        return self.scope.split()

    @property
    def is_undated(self) -> bool:
        """Whether it is unknown when the person consented, and so how old the grant is."""
        return self.undated_grant_id == self.grant_id

    @property
    def reauthorize_by(self) -> datetime | None:
        """When Spotify ends the grant: six months after the consent, which refreshing does not extend.

        None if it is undated.
        Source: https://developer.spotify.com/blog/2026-06-18-refresh-token-expiration
        """
        return None if self.is_undated else six_months_after(self.authorized_at)

    @property
    def lifetime(self) -> timedelta:
        """How long the access token is valid, from issue to expiry."""
        return self.expires_at - (self.refreshed_at or self.authorized_at)

    def is_valid_for(self, lead: timedelta, *, now: datetime) -> bool:
        """Return whether the access token is still valid after `lead`."""
        return is_valid_for(self, lead, now=now)

    @classmethod
    def is_dated(cls) -> sa.ColumnElement[bool]:
        """In SQL: it is known when the person consented. The opposite of `is_undated`."""
        return sa.or_(cls.undated_grant_id.is_(None), cls.undated_grant_id != cls.grant_id)

    @classmethod
    def not_leased(cls, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: no refresh attempt is running. The opposite of `is_leased`."""
        return sa.or_(cls.lease_until.is_(None), is_over(cls.lease_until, now, LEASE))

    @classmethod
    def not_backing_off(cls, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: the next attempt may start. The opposite of `is_backing_off`."""
        return sa.or_(cls.not_before.is_(None), is_over(cls.not_before, now))

    @classmethod
    def is_due(cls, by: datetime, now: datetime) -> sa.ColumnElement[bool]:
        """In SQL: the scheduler has to refresh it by this time."""
        return sa.or_(cls.due_at <= by, is_over(cls.due_at, now))

    def is_leased(self, now: datetime) -> bool:
        """Return whether a refresh attempt is running, or one that died still has its lease."""
        return is_ahead(self.lease_until, now, LEASE)

    def is_backing_off(self, now: datetime) -> bool:
        """Return whether the next attempt has to wait."""
        return is_ahead(self.not_before, now)

    def can_refresh(self, now: datetime) -> bool:
        """Return whether a refresh attempt could start now."""
        ended = self.state == GrantState.REAUTHORIZATION_REQUIRED
        return not ended and not self.is_backing_off(now) and not self.is_leased(now)


def is_valid_for(token: TokenTimes, lead: timedelta, *, now: datetime) -> bool:
    """Return whether an access token is still valid after `lead`.

    The lead is limited to half of the lifetime. Otherwise, a token with a shorter lifetime than the lead
    would be refreshed at every use.
    """
    issued_at = token.refreshed_at or token.authorized_at
    # If the lifetime begins or ends too far ahead, a clock was wrong when it was set.
    is_plausible = (
        issued_at <= now + CLOCK_TOLERANCE and token.expires_at <= now + LONGEST_WAIT + CLOCK_TOLERANCE
    )
    if token.access_token is None or not is_plausible:
        return False
    return token.expires_at - now > min(lead, (token.expires_at - issued_at) / 2)


def six_months_after(moment: datetime) -> datetime:
    """Return the same day and time six calendar months later, or the last day of a shorter month."""
    month = moment.month + 6
    year, month = (moment.year + 1, month - 12) if month > 12 else (moment.year, month)
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)
