"""What Spotify's answers make of a grant: the values to write into its row."""

import logging
import random
from datetime import timedelta

from app.clock import utc_now
from app.models import AccessToken, GrantState

log = logging.getLogger(__name__)

# Spotify's answer is final once a grant is this old: it was due (six months after the consent).
FINAL_AGE = timedelta(days=180)
# A younger grant that Spotify calls revoked is asked about again: it has been wrong before
# (metabrainz/listenbrainz-server#1921). Two confirmations, then the person must consent anew.
CONFIRM_AFTER = (timedelta(minutes=15), timedelta(hours=24))

_BACKOFF_MAX_SECONDS = 900.0
# What ends a lease.
FREE: dict[str, object] = {"attempt_id": None, "lease_until": None}


def after_refusal(row: AccessToken) -> dict[str, object]:
    """What `invalid_grant` makes of a grant: suspect, and only in the end over. The token is kept."""
    now = utc_now()
    confirmed = row.failures if row.state == GrantState.SUSPECT else 0
    if now - row.authorized_at >= FINAL_AGE or confirmed >= len(CONFIRM_AFTER):
        log.warning("spotify_grant_ended", extra={"link": row.spotify_user_id})
        return {**FREE, "state": GrantState.REAUTHORIZATION_REQUIRED, "not_before": None}
    log.warning("spotify_grant_suspect", extra={"link": row.spotify_user_id, "confirmed": confirmed})
    return {
        **FREE,
        "state": GrantState.SUSPECT,
        "failures": confirmed + 1,
        "not_before": now + CONFIRM_AFTER[confirmed],
    }


def pause(row: AccessToken, asked_for: int | None = None) -> timedelta:
    """How long to leave Spotify alone after a failure: longer each time, and as long as it asks for."""
    seconds = min(2.0 ** min(row.failures, 20), _BACKOFF_MAX_SECONDS) * random.uniform(0.5, 1)
    return timedelta(seconds=max(seconds, min(asked_for or 0, 86_400)))


def after_failure(row: AccessToken, wait: timedelta) -> dict[str, object]:
    """What any other failure makes of a grant: nothing, but the next try waits."""
    values: dict[str, object] = {**FREE, "not_before": utc_now() + wait}
    # A suspect's count is of Spotify's refusals; an outage confirms nothing.
    return values if row.state == GrantState.SUSPECT else {**values, "failures": row.failures + 1}
