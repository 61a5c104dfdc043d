"""The breaker: pauses all refreshes while they fail for everyone.

Each reason has its own rule (`breaker_rules`), and concerns either the deployment's application or all of
those that users have registered: one kind does not pause the other. While the breaker is open, one attempt at
a time, the probe, goes through. All others have to wait, and no grant is marked. After enough successful
probes, the breaker closes. When it opens or closes, the effects of those failures on grants are undone.

The state is in the database, so that all processes share it and it survives restarts. Attempts are counted in
their history (`token_refreshes`), so there are no counters to keep in sync (`breaker_queries`).
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyMisconfigured, SpotifyUnavailable
from app.infra import database
from app.infra.database import database_now, reading, run_in_transaction
from app.models import Breaker
from app.models.times import CLOCK_TOLERANCE
from app.models.token_refresh import Outcome
from app.spotify.applications import pauses
from app.spotify.clients.application import ApplicationKind
from app.spotify.tokens import breaker_queries
from app.spotify.tokens.breaker_rules import RULES, Reason, Rule, reasons_of, seconds_until

log = logging.getLogger(__name__)

_REVOCATIONS = {Reason.REVOCATIONS, Reason.OWN_REVOCATIONS}


def require_closed(db: Session, kind: ApplicationKind, now: datetime) -> bool:
    """Let a refresh through if the breaker is closed, or as the probe. Returns whether it is the probe.

    Call it in the transaction that claims the refresh, so that a claim that fails uses up no probe. If
    several breakers are open, a caller that has to wait for one uses up the probe of none.

    Raises:
        SpotifyMisconfigured: Spotify rejects our client id or secret, and the next probe is not due yet.
        SpotifyUnavailable: The breaker is open for another reason, and the next probe is not due yet.
    """
    found = db.scalars(sa.select(Breaker).where(breaker_queries.is_open(reasons_of(kind)))).all()
    for breaker in found:
        if RULES[Reason(breaker.name)].is_waiting(breaker.probe_at, now):
            raise _error_for(breaker, now)
    for breaker in found:
        if not breaker_queries.take_probe(db, Reason(breaker.name), now):
            raise _error_for(breaker, now)
    return bool(found)


def _error_for(breaker: Breaker, now: datetime) -> SpotifyMisconfigured | SpotifyUnavailable:
    seconds = seconds_until(breaker.probe_at, now)
    if breaker.name == Reason.MISCONFIGURED:
        return SpotifyMisconfigured(retry_after=seconds)
    return SpotifyUnavailable(retry_after=seconds)


def open_breakers() -> list[Breaker]:
    """Return the breakers that are open now."""
    with reading() as db:
        return list(db.scalars(sa.select(Breaker).where(breaker_queries.is_open())))


def paused_kinds() -> set[ApplicationKind]:
    """Return the kinds of applications for which the breaker is open now."""
    return {RULES[Reason(found.name)].kind for found in open_breakers()}


def retry_after(kind: ApplicationKind) -> int | None:
    """Return the seconds until the next probe, or None if the breaker is closed."""
    is_open = breaker_queries.is_open(reasons_of(kind))
    with reading() as db:
        found = db.execute(sa.select(Breaker, database_now()).where(is_open)).all()
    waits = [
        seconds_until(breaker.probe_at, now)
        if RULES[Reason(breaker.name)].is_waiting(breaker.probe_at, now)
        else 1
        for breaker, now in found
    ]
    return max(waits, default=None)


def is_revocations_open(db: Session, kind: ApplicationKind) -> bool:
    """Return whether the breaker for revocations is open, so that an `invalid_grant` may be wrong.

    This holds until the transaction ends. Marking a grant and opening the breaker lock the same row, so
    that no mark is missed when the breaker opens and marks are undone. Nodes of a Galera cluster do not see
    each other's locks: there, one of two transactions fails because both change the row.
    """
    [reason] = _REVOCATIONS.intersection(reasons_of(kind))
    breaker = breaker_queries.locked(db, reason)
    if breaker.closed_at is None:
        return True
    breaker.successes += 1  # has no meaning while it is closed
    db.flush()
    return False


@dataclass(frozen=True)
class Observation:
    """The outcome of an attempt, and for how many seconds Spotify asked us to wait.

    `probed_at` is when the attempt began, if it is a probe.
    """

    outcome: Outcome
    kind: ApplicationKind = ApplicationKind.DEPLOYMENT
    probed_at: datetime | None = None
    retry_after: int | None = None


def record_outcomes(observations: Sequence[Observation]) -> None:
    """Open or close the breaker after attempts. The history must already contain their outcomes.

    Only the success of a probe counts, and only for breakers that were open when it began. Other attempts
    may have begun before, which proves nothing.
    """
    for seen in observations:
        proven = [reason for reason in reasons_of(seen.kind) if seen.outcome in RULES[reason].proofs]
        if proven and seen.probed_at is not None:
            _change(partial(_count_success, proven, seen.probed_at))
    for reason, rule in RULES.items():
        failures = [seen for seen in observations if seen.outcome is rule.outcome and seen.kind is rule.kind]
        if failures:
            waits = [seen.retry_after for seen in failures if seen.retry_after is not None]
            _change(partial(_count_failure, reason, rule, max(waits, default=None)), even_if_closed=True)


def close_unused(kind: ApplicationKind) -> None:
    """Close the breakers of a kind of application that this server has none of. No probe would."""
    _change(partial(_close_all, kind))


def client_accepted() -> None:
    """Record that Spotify has accepted the deployment's client id and secret, in the exchange of a code."""
    _change(_close_misconfigured)


def _change(work: Callable[[Session], None], *, even_if_closed: bool = False) -> None:
    """Update the breaker. Only logs errors: the caller's result must not be lost, and others will follow."""
    try:
        if even_if_closed or open_breakers():
            run_in_transaction(work)
    except sa.exc.SQLAlchemyError as error:
        log.warning("breaker_update_failed", extra={"reason": type(error).__name__})


def _close_misconfigured(db: Session) -> None:
    breaker = breaker_queries.locked(db, Reason.MISCONFIGURED)
    if breaker.closed_at is None:
        _close(db, breaker, database.db_now(db))


def _close_all(kind: ApplicationKind, db: Session) -> None:
    now = database.db_now(db)
    for breaker in db.scalars(
        sa.select(Breaker).where(breaker_queries.is_open(reasons_of(kind))).with_for_update()
    ):
        _close(db, breaker, now)


def _count_success(proven: Collection[Reason], began_at: datetime, db: Session) -> None:
    now = database.db_now(db)
    for breaker in breaker_queries.locked_and_open_since(db, proven, began_at, now):
        breaker.successes += 1
        if breaker.successes >= RULES[Reason(breaker.name)].successes:
            _close(db, breaker, now)


def _count_failure(reason: Reason, rule: Rule, retry_after: int | None, db: Session) -> None:
    now = database.db_now(db)
    breaker = breaker_queries.locked(db, reason)
    if breaker.closed_at is None:
        breaker.successes = 0
        if retry_after is not None:
            probe_at = now + rule.probe_wait(retry_after)
            is_waiting = rule.is_waiting(breaker.probe_at, now)
            breaker.probe_at = max(breaker.probe_at, probe_at) if is_waiting else probe_at
        return
    since = now - rule.window
    if breaker.closed_at <= now + CLOCK_TOLERANCE:
        since = max(since, breaker.closed_at)  # earlier failures have been dealt with
    if breaker_queries.is_met(db, rule, since, now):
        breaker.probe_at = now + rule.probe_wait(retry_after)
        _open(db, breaker, since, now)


def _open(db: Session, breaker: Breaker, since: datetime, now: datetime) -> None:
    log.error("breaker_opened", extra={"reason": breaker.name})
    breaker.opened_at, breaker.closed_at, breaker.successes = now, None, 0
    rule = RULES[Reason(breaker.name)]
    affected = breaker_queries.affected_grants(db, rule, since, now)
    if breaker.name in _REVOCATIONS:
        breaker_queries.undo_rejections(db, affected, since)
    breaker_queries.end_backoffs(db, affected, rule, now)
    _end_pauses(db, breaker, since)


def _close(db: Session, breaker: Breaker, now: datetime) -> None:
    log.warning("breaker_closed", extra={"reason": breaker.name})
    breaker.closed_at = now
    rule = RULES[Reason(breaker.name)]
    since = min(breaker.opened_at, now) - rule.window
    affected = breaker_queries.affected_grants(db, rule, since, now)
    breaker_queries.end_backoffs(db, affected, rule, now)
    _end_pauses(db, breaker, since)


def _end_pauses(db: Session, breaker: Breaker, since: datetime) -> None:
    """End the pauses of applications that did not cause their failures."""
    if breaker.name == Reason.OWN_OUTAGE:
        pauses.end_outage(db, since)
