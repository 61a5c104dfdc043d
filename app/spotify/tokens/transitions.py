"""What Spotify's answers make of a grant: the values to write into its row.

`at` is always the database's time.
"""

import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta

from app.models import AccessToken, GrantState
from app.models.access_token import LONGEST_WAIT

log = logging.getLogger(__name__)

Values = dict[str, object]
# What an answer makes of a grant, once it is known when that is written down.
Transition = Callable[[datetime], Values]

# Spotify's answer is final once a grant is this old: it was due (six months after the consent).
FINAL_AGE = timedelta(days=180)
# A younger grant that Spotify calls revoked is asked about again: it has been wrong before
# (metabrainz/listenbrainz-server#1921). Two confirmations, then the person must consent anew.
CONFIRM_AFTER = (timedelta(minutes=15), LONGEST_WAIT)

_BACKOFF_MAX_SECONDS = 900.0
_JITTER = 0.2
# What ends a lease.
_FREE: Values = {"attempt_id": None, "lease_until": None}


def next_refresh_at(expires_at: datetime, life: timedelta, lead: timedelta) -> datetime:
    """When to refresh ahead of time: `lead` before the end, but not in the first half of a short life.

    A fifth more or less, so that those who connected together are not refreshed together.
    """
    most = min(lead, life / 2 / (1 + _JITTER))
    return expires_at - most * random.uniform(1 - _JITTER, 1 + _JITTER)


def latest_lead(lead: timedelta) -> timedelta:
    """How long before the end `due` may be at the most."""
    return lead * (1 + _JITTER)


def is_aged(row: AccessToken, at: datetime) -> bool:
    """Whether the grant has reached its natural end, or is about to."""
    return at - row.authorized_at >= FINAL_AGE


def after_refusal(row: AccessToken, at: datetime) -> Values:
    """What `invalid_grant` makes of a grant: suspect, and only in the end over. The token is kept."""
    if row.spare_refresh_token is not None:
        log.warning("spotify_grant_spare_used", extra={"link": row.spotify_user_id})
        spare = {"refresh_token": row.spare_refresh_token, "spare_refresh_token": None}
        return {**_FREE, **spare, "not_before": None, "due_at": at}
    confirmed = row.failures if row.state == GrantState.SUSPECT else 0
    if is_aged(row, at) or confirmed >= len(CONFIRM_AFTER):
        log.warning("spotify_grant_ended", extra={"link": row.spotify_user_id})
        ended = {"state": GrantState.REAUTHORIZATION_REQUIRED, "ended_at": at}
        return {**_FREE, **ended, "not_before": None, "due_at": None}
    log.warning("spotify_grant_suspect", extra={"link": row.spotify_user_id, "confirmed": confirmed})
    return {
        **_FREE,
        "state": GrantState.SUSPECT,
        "failures": confirmed + 1,
        "not_before": at + CONFIRM_AFTER[confirmed],
        "due_at": at + CONFIRM_AFTER[confirmed],
    }


def pause(row: AccessToken, asked_for: int | None = None) -> timedelta:
    """How long to leave Spotify alone after a failure: longer each time, and as long as it asks for."""
    seconds = min(2.0 ** min(row.failures, 20), _BACKOFF_MAX_SECONDS) * random.uniform(0.5, 1)
    return min(timedelta(seconds=max(seconds, asked_for or 0)), LONGEST_WAIT)


def after_failure(row: AccessToken, wait: timedelta, at: datetime, *, kept: Values | None = None) -> Values:
    """What any other failure makes of a grant: the next try waits, and what came with it is `kept`."""
    values: Values = {**_FREE, **(kept or {}), "not_before": at + wait, "due_at": at + wait}
    # A suspect's count is of Spotify's refusals; an outage confirms nothing.
    return values if row.state == GrantState.SUSPECT else {**values, "failures": row.failures + 1}


def after_success(claimed_at: datetime, life: timedelta, lead: timedelta) -> Values:
    """What a refresh makes of a grant, its tokens apart.

    Its life began when Spotify made the token, which was not before it was asked for.
    """
    return {
        **_FREE,
        "state": GrantState.ACTIVE,
        "expires_at": claimed_at + life,
        "due_at": next_refresh_at(claimed_at + life, life, lead),
        "refreshed_at": claimed_at,
        "spare_refresh_token": None,
        "not_before": None,
        "failures": 0,
    }
