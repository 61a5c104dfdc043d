"""Maps Spotify's responses to the values to write to a grant's row.

`at` is always the database's time.
"""

import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta

from app.models import AccessToken, GrantState
from app.models.times import LONGEST_WAIT

log = logging.getLogger(__name__)

Values = dict[str, object]
# Returns the values to write, given the time at which they are written.
Transition = Callable[[datetime], Values]

# Spotify ends a grant six months after the consent. If it rejects a grant this old, that is final.
FINAL_AGE = timedelta(days=180)
# The rejection of a younger grant is confirmed twice, after these times, before the person has to consent
# again. Spotify has rejected valid grants before (metabrainz/listenbrainz-server#1921).
CONFIRM_AFTER = (timedelta(minutes=15), LONGEST_WAIT)

_BACKOFF_MAX_SECONDS = 900.0
# The part of the lead by which refreshes are spread. With 20%, refreshes that an outage has delayed come in
# waves for more than a day; with a third, for half a day (docs/scaling.md).
_JITTER = 1 / 3
_RELEASED_LEASE: Values = {"attempt_id": None, "lease_until": None}


def next_refresh_at(expires_at: datetime, lifetime: timedelta, lead: timedelta) -> datetime:
    """Return when to refresh: `lead` before the expiry, but not in the first half of the lifetime.

    Jitter of a third of `lead` spreads the refreshes of people who connected at the same time.
    """
    longest = min(lead, lifetime / 2 / (1 + _JITTER))
    return expires_at - longest * random.uniform(1 - _JITTER, 1 + _JITTER)


def latest_lead(lead: timedelta) -> timedelta:
    """Return the longest time before the expiry that `next_refresh_at` can choose."""
    return lead * (1 + _JITTER)


def is_aged(row: AccessToken, at: datetime) -> bool:
    """Return whether the grant has reached the end of its six months, or is about to. If unknown, it has."""
    return row.is_undated or at - row.authorized_at >= FINAL_AGE


def is_rejection_expected(row: AccessToken, at: datetime) -> bool:
    """Return whether a rejection says nothing about Spotify, so that the breaker must not count it.

    Among imported refresh tokens, many may have ended before the import. Until its first refresh, an imported
    grant has no access token.
    """
    return is_aged(row, at) or row.access_token is None


def after_rejection(row: AccessToken, at: datetime) -> Values:
    """Return the row after an `invalid_grant`: suspect at first, ended when confirmed. The token is kept."""
    if row.spare_refresh_token is not None:
        log.warning("spotify_grant_spare_used", extra={"spotify_user_id": row.spotify_user_id})
        spare = {"refresh_token": row.spare_refresh_token, "spare_refresh_token": None}
        return {**_RELEASED_LEASE, **spare, "not_before": None, "due_at": at}
    confirmed = row.failures if row.state == GrantState.SUSPECT else 0
    if is_aged(row, at) or confirmed >= len(CONFIRM_AFTER):
        log.warning("spotify_grant_ended", extra={"spotify_user_id": row.spotify_user_id})
        ended = {"state": GrantState.REAUTHORIZATION_REQUIRED, "ended_at": at}
        return {**_RELEASED_LEASE, **ended, "not_before": None, "due_at": None}
    log.warning(
        "spotify_grant_suspect", extra={"spotify_user_id": row.spotify_user_id, "confirmed": confirmed}
    )
    return {
        **_RELEASED_LEASE,
        "state": GrantState.SUSPECT,
        "failures": confirmed + 1,
        "not_before": at + CONFIRM_AFTER[confirmed],
        "due_at": at + CONFIRM_AFTER[confirmed],
    }


def backoff(row: AccessToken, retry_after: int | None = None) -> timedelta:
    """Return how long to wait after a failure: longer each time, and at least `retry_after` seconds."""
    seconds = min(2.0 ** min(row.failures, 20), _BACKOFF_MAX_SECONDS) * random.uniform(0.5, 1)
    return min(timedelta(seconds=max(seconds, retry_after or 0)), LONGEST_WAIT)


def after_failure(
    row: AccessToken, wait: timedelta, at: datetime, *, salvaged: Values | None = None
) -> Values:
    """Return the row after any other failure, with the columns that were `salvaged` from the response."""
    values: Values = {**_RELEASED_LEASE, **(salvaged or {}), "not_before": at + wait, "due_at": at + wait}
    # A suspect grant's `failures` are Spotify's rejections. An outage confirms none of them.
    return values if row.state == GrantState.SUSPECT else {**values, "failures": row.failures + 1}


def after_success(claimed_at: datetime, lifetime: timedelta, lead: timedelta) -> Values:
    """Return the row after a refresh, except for the tokens.

    The lifetime is counted from the claim, because Spotify cannot have issued the token earlier.
    """
    return {
        **_RELEASED_LEASE,
        "state": GrantState.ACTIVE,
        "expires_at": claimed_at + lifetime,
        "due_at": next_refresh_at(claimed_at + lifetime, lifetime, lead),
        "refreshed_at": claimed_at,
        "spare_refresh_token": None,
        "not_before": None,
        "failures": 0,
    }
