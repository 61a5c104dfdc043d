"""Stored times. One that is further ahead than it can have been set is a wrong clock's, and is ignored."""

from datetime import datetime, timedelta

import sqlalchemy as sa

# The furthest ahead that most times are set: a `Retry-After`, a confirmation, or an access token's expiry.
LONGEST_WAIT = timedelta(days=1)
# How far the database's clock may step back, for example when a replica takes over.
CLOCK_TOLERANCE = timedelta(seconds=10)


def is_ahead(moment: datetime | None, now: datetime, longest: timedelta = LONGEST_WAIT) -> bool:
    """Return whether a time is in the future, but no further ahead than it can have been set."""
    return moment is not None and now < moment <= now + longest + CLOCK_TOLERANCE


def is_over(
    moment: sa.orm.InstrumentedAttribute[datetime] | sa.orm.InstrumentedAttribute[datetime | None],
    now: datetime,
    longest: timedelta = LONGEST_WAIT,
) -> sa.ColumnElement[bool]:
    """In SQL: the opposite of `is_ahead`, for a column that is not NULL."""
    return sa.or_(moment <= now, moment > now + longest + CLOCK_TOLERANCE)
