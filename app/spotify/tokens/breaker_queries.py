"""The breaker's SQL: its rows, the history that it counts, and the grants that it restores."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.infra.row_versions import announce
from app.models import AccessToken, Breaker, GrantState, SpotifyApp, TokenRefresh
from app.models.times import CLOCK_TOLERANCE, is_over
from app.models.token_refresh import Outcome
from app.spotify.clients.application import ApplicationKind
from app.spotify.tokens.breaker_rules import RULES, Reason, Rule
from app.spotify.tokens.transitions import CONFIRM_AFTER

# A grant that fails more often than this counts as broken itself, not as part of an outage.
_MAX_SHARED_FAILURES = 3
_ATTEMPT_MAX_DURATION = timedelta(minutes=1)
_NEVER = datetime(2000, 1, 1, tzinfo=UTC)


def is_open(reasons: Collection[Reason] = tuple(Reason)) -> sa.ColumnElement[bool]:
    """In SQL: the breaker is open, for one of these reasons. A later release may know other ones."""
    return sa.and_(Breaker.closed_at.is_(None), Breaker.name.in_([reason.value for reason in reasons]))


def locked(db: Session, reason: Reason) -> Breaker:
    """Return the breaker's row, which stays locked until the transaction ends. Creates it if necessary."""
    breaker = db.get(Breaker, reason, with_for_update=True)
    if breaker is None:
        breaker = Breaker(name=reason, opened_at=_NEVER, closed_at=_NEVER, probe_at=_NEVER)
        db.add(breaker)
        db.flush()
    return breaker


def locked_and_open_since(
    db: Session, reasons: Collection[Reason], began_at: datetime, now: datetime
) -> list[Breaker]:
    """Return the breakers that were open when an attempt began, and lock them."""
    was_open = sa.or_(Breaker.opened_at <= began_at, Breaker.opened_at > now + CLOCK_TOLERANCE)
    return list(db.scalars(sa.select(Breaker).where(is_open(reasons), was_open).with_for_update()))


def take_probe(db: Session, reason: Reason, now: datetime) -> bool:
    """Take the probe that is due. Returns False if another caller was first."""
    rule = RULES[reason]
    taken = db.execute(
        sa.update(Breaker)
        .where(
            Breaker.name == reason,
            Breaker.closed_at.is_(None),
            is_over(Breaker.probe_at, now, rule.longest_wait),
        )
        .values(probe_at=now + rule.probe_interval)
    )
    return taken.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def is_met(db: Session, rule: Rule, since: datetime, now: datetime) -> bool:
    """Return whether the attempts after `since` are enough reason to open the breaker."""
    if rule.opens_at_first_failure:
        return True
    connections = sa.select(sa.func.count(TokenRefresh.spotify_user_id.distinct()))
    tried = connections.where(*_finished_between(since, now), _is_of(rule.kind, since))
    failed = tried.where(TokenRefresh.outcome == rule.outcome, ~_rejected_before(since))
    failures = db.execute(failed).scalar_one()
    if failures < rule.min_connections:  # usually: counting all that were tried takes much longer
        return False
    return rule.is_met(failures, db.execute(tried).scalar_one())


def affected_grants(db: Session, rule: Rule, since: datetime, now: datetime) -> sa.ColumnElement[bool]:
    """Return the condition for grants with an attempt after `since` that ended with the rule's outcome.

    The caller is about to change them.
    """
    affected = sa.select(TokenRefresh.spotify_user_id, TokenRefresh.grant_id).where(
        *_finished_between(since, now), TokenRefresh.outcome == rule.outcome, _is_of(rule.kind, since)
    )
    found = db.execute(affected.distinct()).all()
    announce(db, connections=[spotify_user_id for spotify_user_id, _ in found], best_effort=True)
    return sa.and_(
        # Redundant, so that the database can use the index.
        AccessToken.spotify_user_id.in_([spotify_user_id for spotify_user_id, _ in found]),
        AccessToken.grant_id.in_([grant_id for _, grant_id in found]),
    )


def undo_rejections(db: Session, affected: sa.ColumnElement[bool], since: datetime) -> None:
    """Undo one rejection of each affected grant that is suspect, or has ended after `since`.

    A grant goes through these states: active, suspect with 1 failure, suspect with 2, …, ended. Each must go
    back by one. The updates start with the earliest state, because each one moves grants to a state that
    the update before it matches. In any other order, some grants would go back by two.
    """
    is_suspect = AccessToken.state == GrantState.SUSPECT
    has_ended = AccessToken.state == GrantState.REAUTHORIZATION_REQUIRED
    for condition, previous in (
        (sa.and_(is_suspect, AccessToken.failures == 1), {"state": GrantState.ACTIVE, "failures": 0}),
        (is_suspect, {"failures": AccessToken.failures - 1}),
        (
            sa.and_(has_ended, AccessToken.ended_at >= since),
            {"state": GrantState.SUSPECT, "failures": len(CONFIRM_AFTER), "ended_at": None},
        ),
    ):
        db.execute(sa.update(AccessToken).where(affected, condition).values(previous))


def end_backoffs(db: Session, affected: sa.ColumnElement[bool], rule: Rule, now: datetime) -> None:
    """Make the affected grants due now, because they did not cause their failures.

    If a single failure opens the breaker, the grant may have caused it after all. Then the grant keeps
    its number of failures, so that others go first, and after several failures its backoff too, so that
    it does not open the breaker again and again.
    """
    is_active, is_suspect = (AccessToken.state == state for state in (GrantState.ACTIVE, GrantState.SUSPECT))
    if rule.opens_at_first_failure:
        affected = sa.and_(affected, AccessToken.failures <= _MAX_SHARED_FAILURES)
    else:
        db.execute(sa.update(AccessToken).where(affected, is_active).values(failures=0))
    due = sa.update(AccessToken).where(affected, sa.or_(is_active, is_suspect))
    db.execute(due.values(not_before=None, due_at=now))


def _finished_between(since: datetime, now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        TokenRefresh.finished_at.between(since, now + CLOCK_TOLERANCE),
        TokenRefresh.started_at >= since - _ATTEMPT_MAX_DURATION,  # the index is on this column
    )


def _is_of(kind: ApplicationKind, since: datetime) -> sa.ColumnElement[bool]:
    """In SQL: the attempt was made with this kind of application.

    Users' applications that began to fail before `since` are left out: they fail for their own reasons.
    """
    if kind is ApplicationKind.DEPLOYMENT:
        return TokenRefresh.spotify_app_id.is_(None)
    has_worked = sa.or_(SpotifyApp.failing_since.is_(None), SpotifyApp.failing_since >= since)
    return TokenRefresh.spotify_app_id.in_(sa.select(SpotifyApp.id).where(has_worked))


def _rejected_before(since: datetime) -> sa.ColumnElement[bool]:
    """In SQL: the grant was rejected before. Another rejection is no sign of a general problem."""
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
