"""The breaker: when refreshing fails for everybody, it is not tried for everybody.

Each trouble opens the breaker in its own way (`_RULES`). While it is open one try at a time goes
through, the probe, and the others are told to wait; nobody's grant is marked. When enough probes
succeed it closes, and what the trouble had done to grants is taken back.

It stands in the database, so that all processes share it and a restart does not forget it, and it
counts attempts in their history (`token_refreshes`), which nobody has to keep in step.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.errors import SpotifyMisconfigured, SpotifyUnavailable
from app.infra import database
from app.infra.database import database_now, reading, run_in_transaction
from app.models import AccessToken, Breaker, GrantState, TokenRefresh
from app.models.access_token import CLOCK_TOLERANCE, LONGEST_WAIT, is_ahead, is_over
from app.models.token_refresh import Outcome
from app.spotify.tokens.transitions import CONFIRM_AFTER

log = logging.getLogger(__name__)


# A refusal too is an answer: it shows Spotify well and our secret right.
_ANSWERS = (Outcome.REFRESHED, Outcome.INVALID_GRANT, Outcome.AGED)
# So often a grant may fail before what it meets counts as its own trouble.
_FAILURES_OF_ALL = 3
_NEVER = datetime(2000, 1, 1, tzinfo=UTC)


class Reason(StrEnum):
    """Why refreshing fails for everybody."""

    REVOCATIONS = "revocations"  # so many young grants called revoked that it cannot be true
    MISCONFIGURED = "misconfigured"  # Spotify refuses our client id or secret
    RATE_LIMITED = "rate_limited"  # Spotify asked us to wait
    OUTAGE = "outage"  # no usable answers


@dataclass(frozen=True)
class _Rule:
    """When a trouble is one, and when it is over."""

    outcome: Outcome  # what is counted
    window: timedelta = timedelta(minutes=1)  # what is counted, and taken back
    links: int = 1  # with this outcome within the window, at least
    percent: float = 0  # and more than this share of all that were tried
    # A little less than a minute: a scheduler that looks every 30 s would be late for each.
    probe_every: timedelta = timedelta(seconds=55)
    successes: int = 1  # of probes, one after another
    longest_wait: timedelta = timedelta(minutes=1)  # for a probe, whatever Spotify asks for


_RULES = {
    Reason.REVOCATIONS: _Rule(
        Outcome.INVALID_GRANT, window=timedelta(minutes=10), links=10, percent=5, successes=5
    ),
    Reason.MISCONFIGURED: _Rule(Outcome.MISCONFIGURED),
    Reason.RATE_LIMITED: _Rule(
        Outcome.RATE_LIMITED, probe_every=timedelta(seconds=30), longest_wait=LONGEST_WAIT
    ),
    Reason.OUTAGE: _Rule(Outcome.UNAVAILABLE, links=10, percent=90, probe_every=timedelta(seconds=5)),
}


# A later release may know more troubles than this one.
_IS_OPEN = sa.and_(Breaker.closed_at.is_(None), Breaker.name.in_([trouble.value for trouble in Reason]))


def require_closed(db: Session, at: datetime) -> None:
    """Let a refresh through, as the probe where the breaker is open.

    In the transaction that claims the refresh: without a claim no probe is used up.

    Raises:
        SpotifyUnavailable, SpotifyMisconfigured: it is open, and the next probe is not due.
    """
    for breaker in db.scalars(sa.select(Breaker).where(_IS_OPEN)):
        if _is_waiting(breaker, at) or not _take_probe(db, breaker.name, at):
            wait = _seconds_until(breaker.probe_at, at)
            if breaker.name == Reason.MISCONFIGURED:
                raise SpotifyMisconfigured(retry_after=wait)
            raise SpotifyUnavailable(retry_after=wait)


def _is_waiting(breaker: Breaker, at: datetime) -> bool:
    return is_ahead(breaker.probe_at, at, _RULES[Reason(breaker.name)].longest_wait)


def _take_probe(db: Session, name: str, at: datetime) -> bool:
    rule = _RULES[Reason(name)]
    is_due = is_over(Breaker.probe_at, at, rule.longest_wait)
    taken = db.execute(
        sa.update(Breaker)
        .where(Breaker.name == name, Breaker.closed_at.is_(None), is_due)
        .values(probe_at=at + rule.probe_every)
    )
    return taken.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def open_breakers() -> list[Breaker]:
    """What holds refreshing back now; usually nothing."""
    with reading() as db:
        return list(db.scalars(sa.select(Breaker).where(_IS_OPEN)))


def retry_after() -> int | None:
    """Return the number of seconds until the next probe, or None if the breaker is closed."""
    with reading() as db:
        found = db.execute(sa.select(Breaker, database_now()).where(_IS_OPEN)).all()
    waits = [
        _seconds_until(breaker.probe_at, now) if _is_waiting(breaker, now) else 1 for breaker, now in found
    ]
    return max(waits, default=None)


def doubts_revocations(db: Session) -> bool:
    """Whether `invalid_grant` is not to be believed at present.

    The answer holds until the transaction ends: who marks a grant and who opens the breaker wait
    for each other, so that no mark is overlooked when marks are taken back.
    """
    return _locked(db, Reason.REVOCATIONS).closed_at is None


def record_outcome(outcome: Outcome, began: datetime, retry_after: int | None = None) -> None:
    """Open or close the breaker after an attempt, once its outcome stands in the history.

    A success counts if it `began` while the breaker was open: one from before proves nothing.
    """
    if outcome in _ANSWERS:
        _change(partial(_count_success, outcome, began))
    for trouble, rule in _RULES.items():
        if rule.outcome is outcome:
            _change(partial(_count_failure, trouble, rule, retry_after), though_closed=True)


def client_accepted() -> None:
    """Spotify has just accepted our client id and secret, in the exchange of a code."""
    _change(_close_misconfigured)


def _change(unit: Callable[[Session], None], *, though_closed: bool = False) -> None:
    """Write, if there is reason to. Whoever brings the news must not fail for it: more will come."""
    try:
        if though_closed or open_breakers():
            run_in_transaction(unit)
    except sa.exc.SQLAlchemyError as error:
        log.warning("breaker_update_failed", extra={"reason": type(error).__name__})


def _close_misconfigured(db: Session) -> None:
    breaker = _locked(db, Reason.MISCONFIGURED)
    if breaker.closed_at is None:
        _close(db, breaker, database.db_now(db))


def _count_success(outcome: Outcome, began: datetime, db: Session) -> None:
    at = database.db_now(db)
    was_open = sa.or_(Breaker.opened_at <= began, Breaker.opened_at > at + CLOCK_TOLERANCE)
    proven = sa.and_(_IS_OPEN, was_open)
    if outcome is not Outcome.REFRESHED:
        proven &= Breaker.name != Reason.REVOCATIONS
    for breaker in db.scalars(sa.select(Breaker).where(proven).with_for_update()):
        breaker.successes += 1
        if breaker.successes >= _RULES[Reason(breaker.name)].successes:
            _close(db, breaker, at)


def _count_failure(trouble: Reason, rule: _Rule, retry_after: int | None, db: Session) -> None:
    at = database.db_now(db)
    asked_for = None if retry_after is None else timedelta(seconds=max(retry_after, 1))
    wait = rule.probe_every if asked_for is None else min(asked_for, rule.longest_wait)
    breaker = _locked(db, trouble)
    if breaker.closed_at is None:
        breaker.successes = 0
        if asked_for is not None:
            waiting = _is_waiting(breaker, at)
            breaker.probe_at = max(breaker.probe_at, at + wait) if waiting else at + wait
        return
    since = at - rule.window
    if breaker.closed_at <= at + CLOCK_TOLERANCE:
        since = max(since, breaker.closed_at)  # what was before that has been dealt with
    if not _is_trouble(db, rule, since, at):
        return
    breaker.opened_at, breaker.closed_at, breaker.probe_at, breaker.successes = at, None, at + wait, 0
    log.error("breaker_opened", extra={"reason": trouble.value})
    met = _met(db, rule, since, at)
    if trouble is Reason.REVOCATIONS:
        _take_back_marks(db, met, since)
    _end_pauses(db, met, rule, at)


def _seconds_until(moment: datetime, at: datetime) -> int:
    return max(1, math.ceil((moment - at).total_seconds()))


def _locked(db: Session, trouble: Reason) -> Breaker:
    """The breaker's row, locked until the transaction ends; made where there is none yet."""
    breaker = db.get(Breaker, trouble, with_for_update=True)
    if breaker is None:
        breaker = Breaker(name=trouble, opened_at=_NEVER, closed_at=_NEVER, probe_at=_NEVER)
        db.add(breaker)
        db.flush()
    return breaker


def _is_trouble(db: Session, rule: _Rule, since: datetime, at: datetime) -> bool:
    if rule.links <= 1:
        return True
    links = sa.select(sa.func.count(TokenRefresh.spotify_user_id.distinct()))
    tried = links.where(*_finished_between(since, at))
    news = (TokenRefresh.outcome == rule.outcome, ~_refused_before(since))
    failed = db.execute(tried.where(*news)).scalar_one()
    return failed >= rule.links and failed * 100 > rule.percent * db.execute(tried).scalar_one()


def _refused_before(since: datetime) -> sa.ColumnElement[bool]:
    """A grant that was refused before is no news: it may well have been revoked."""
    earlier = aliased(TokenRefresh)
    return (
        sa.exists()
        .where(
            earlier.spotify_user_id == TokenRefresh.spotify_user_id,
            earlier.grant_id == TokenRefresh.grant_id,
            earlier.outcome == Outcome.INVALID_GRANT,
            earlier.finished_at < since,
        )
        .correlate(TokenRefresh)
    )


def _finished_between(since: datetime, at: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    # The index is on `started_at`, and an attempt takes a minute at most.
    return (
        TokenRefresh.finished_at.between(since, at + CLOCK_TOLERANCE),
        TokenRefresh.started_at >= since - timedelta(minutes=1),
    )


def _close(db: Session, breaker: Breaker, at: datetime) -> None:
    breaker.closed_at = at
    log.warning("breaker_closed", extra={"reason": breaker.name})
    rule = _RULES[Reason(breaker.name)]
    since = min(breaker.opened_at, at) - rule.window
    _end_pauses(db, _met(db, rule, since, at), rule, at)


def _met(db: Session, rule: _Rule, since: datetime, at: datetime) -> sa.ColumnElement[bool]:
    """The grants that a trouble has met since then."""
    met = sa.select(TokenRefresh.spotify_user_id, TokenRefresh.grant_id).where(
        *_finished_between(since, at), TokenRefresh.outcome == rule.outcome
    )
    found = db.execute(met.distinct()).all()
    # The links are for the index.
    return sa.and_(
        AccessToken.spotify_user_id.in_([link_id for link_id, _ in found]),
        AccessToken.grant_id.in_([grant_id for _, grant_id in found]),
    )


def _take_back_marks(db: Session, met: sa.ColumnElement[bool], since: datetime) -> None:
    """Undo what young grants were marked as since then: one step each."""
    suspect = AccessToken.state == GrantState.SUSPECT
    ended = AccessToken.state == GrantState.REAUTHORIZATION_REQUIRED
    for marked, before in (
        (sa.and_(suspect, AccessToken.failures == 1), {"state": GrantState.ACTIVE, "failures": 0}),
        (suspect, {"failures": AccessToken.failures - 1}),
        (
            sa.and_(ended, AccessToken.ended_at >= since),
            {"state": GrantState.SUSPECT, "failures": len(CONFIRM_AFTER), "ended_at": None},
        ),
    ):
        db.execute(sa.update(AccessToken).where(met, marked).values(before))


def _end_pauses(db: Session, met: sa.ColumnElement[bool], rule: _Rule, at: datetime) -> None:
    """Let the grants that a trouble has met be tried without delay: it was not their own trouble.

    What opens the breaker at first sight may be one grant's own after all. Such a one keeps its count,
    so that the others go first, and in the end its pause, so that it does not open it time and again.
    """
    active, suspect = (AccessToken.state == state for state in (GrantState.ACTIVE, GrantState.SUSPECT))
    if rule.links > 1:
        db.execute(sa.update(AccessToken).where(met, active).values(failures=0))
    else:
        met = sa.and_(met, AccessToken.failures <= _FAILURES_OF_ALL)
    db.execute(sa.update(AccessToken).where(met, sa.or_(active, suspect)).values(not_before=None, due_at=at))
