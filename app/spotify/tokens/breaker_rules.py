"""The rules of the breaker: when all refreshes stop, and when they continue.

Those for users' own applications are only about Spotify itself: what is wrong with one of these applications
concerns no other (`app.spotify.applications.pauses`).
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from app.models.times import LONGEST_WAIT, is_ahead
from app.models.token_refresh import Outcome
from app.spotify.clients.application import ApplicationKind


class Reason(StrEnum):
    """Why all refreshes of a kind of application fail. Each reason has its own breaker."""

    REVOCATIONS = "revocations"  # Spotify rejects so many young grants that the rejections may be wrong
    MISCONFIGURED = "misconfigured"  # Spotify rejects our client id or secret
    RATE_LIMITED = "rate_limited"  # Spotify asked us to wait
    OUTAGE = "outage"  # Spotify gives no usable responses
    OWN_REVOCATIONS = "own_revocations"  # as above, for users' own applications together
    OWN_OUTAGE = "own_outage"


@dataclass(frozen=True)
class Rule:
    """When a breaker opens, and when it closes.

    It opens if, within `window`, at least `min_connections` connections of this kind of application had
    `outcome`, and those are more than `min_percent` of those tried. It closes after `successes` probes in a
    row with one of `proofs`.
    """

    outcome: Outcome
    kind: ApplicationKind = ApplicationKind.DEPLOYMENT
    window: timedelta = timedelta(minutes=1)
    min_connections: int = 1
    min_percent: float = 0
    # Slightly less than a minute: a scheduler that runs every 30 s would just miss each full minute.
    probe_interval: timedelta = timedelta(seconds=55)
    longest_wait: timedelta = timedelta(minutes=1)  # for a probe, whatever Spotify asks for
    successes: int = 1
    # A rejection of the grant also proves that Spotify responds, and accepts our secret.
    proofs: tuple[Outcome, ...] = (Outcome.REFRESHED, Outcome.INVALID_GRANT, Outcome.AGED)

    @property
    def opens_at_first_failure(self) -> bool:
        """Whether a single failure opens the breaker. Only one grant may be affected."""
        return self.min_connections <= 1

    def is_met(self, failed: int, tried: int) -> bool:
        """Return whether this many connections, of all that were tried, are enough to open the breaker."""
        return failed >= self.min_connections and failed * 100 > self.min_percent * tried

    def probe_wait(self, retry_after: int | None) -> timedelta:
        """Return how long to wait for the next probe. `retry_after` is what Spotify asked for, in seconds."""
        if retry_after is None:
            return self.probe_interval
        return min(timedelta(seconds=max(retry_after, 1)), self.longest_wait)

    def is_waiting(self, probe_at: datetime, now: datetime) -> bool:
        """Return whether the next probe has to wait."""
        return is_ahead(probe_at, now, self.longest_wait)


RULES = {
    Reason.REVOCATIONS: Rule(
        Outcome.INVALID_GRANT,
        window=timedelta(minutes=10),
        min_connections=10,
        min_percent=5,
        successes=5,
        proofs=(Outcome.REFRESHED,),
    ),
    Reason.MISCONFIGURED: Rule(Outcome.MISCONFIGURED),
    Reason.RATE_LIMITED: Rule(
        Outcome.RATE_LIMITED, probe_interval=timedelta(seconds=30), longest_wait=LONGEST_WAIT
    ),
    Reason.OUTAGE: Rule(
        Outcome.UNAVAILABLE, min_connections=10, min_percent=90, probe_interval=timedelta(seconds=5)
    ),
}
RULES |= {
    # Users may revoke what they have connected with their own applications, so it takes more of them.
    Reason.OWN_REVOCATIONS: replace(RULES[Reason.REVOCATIONS], kind=ApplicationKind.OWN, min_percent=50),
    Reason.OWN_OUTAGE: replace(RULES[Reason.OUTAGE], kind=ApplicationKind.OWN),
}


def reasons_of(kind: ApplicationKind) -> list[Reason]:
    """Return the reasons that concern a kind of application."""
    return [reason for reason, rule in RULES.items() if rule.kind is kind]


def seconds_until(moment: datetime, now: datetime) -> int:
    """Return the seconds until a time, at least one."""
    return max(1, math.ceil((moment - now).total_seconds()))
