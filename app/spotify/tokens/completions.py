"""Finishes attempts to refresh grants: stores their results, one or many in each transaction.

A result is written with a compare-and-swap on (`grant_id`, `generation`). `docs/custody.md` explains why this
is safe.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import run_in_transaction, run_in_transaction_until
from app.infra.row_versions import announce
from app.models import AccessToken, TokenRefresh
from app.models.token_refresh import Outcome
from app.spotify.clients.application import ApplicationKind
from app.spotify.tokens import breaker, transitions
from app.spotify.tokens.grant_row import compare_and_swap, grants
from app.spotify.tokens.results import Result
from app.spotify.tokens.transitions import Values

log = logging.getLogger(__name__)

# While rejections may be wrong, a rejected grant waits this long, so that the next probe is another grant's.
_REJECTED_PROBE_WAIT = timedelta(minutes=10)

# Without the ORM, which takes ten times as long for a statement.
_history = cast("sa.Table", TokenRefresh.__table__)


@dataclass(frozen=True)
class Completion:
    """How an attempt ended, and when that was recorded.

    `written` holds the columns that were written to the grant's row. It is None if nothing was written, or
    if the reply to an earlier COMMIT of the same result was lost.
    """

    outcome: Outcome
    at: datetime
    written: Values | None = None


def finish(result: Result) -> Completion:
    """Record an attempt's outcome and apply it to the grant, in one transaction.

    The grant is changed only if it is still at the generation that was refreshed. Otherwise a consent, a
    disconnect, or another refresh has superseded the attempt. Then only a new refresh token of the same
    grant is kept, as a spare.

    Raises:
        SQLAlchemyError: The result could not be stored.
    """
    # Spotify might not send this result again, so a deadlock or a broken connection must not lose it.
    try:
        [completion] = run_in_transaction_until(result.store_until, lambda db: _finish(db, [result]).values())
    except sa.exc.SQLAlchemyError:
        log.error(
            "token_response_lost",
            extra={
                "spotify_user_id": result.row.spotify_user_id,
                "outcome": result.outcome,
                "new_refresh_token": result.orphan_token is not None,
            },
        )
        raise
    return completion


def finish_together(results: Sequence[Result]) -> dict[Result, Completion]:
    """Do what `finish` does for many attempts in one transaction, which is tried at most twice.

    It skips rows that other transactions have locked. Only if a grant was rejected, it waits: for the
    breaker's row.

    Returns the results that are stored. Pass the others to `finish`, even if the reply to the COMMIT was
    lost: it finds out whether they were stored.
    """
    try:
        return run_in_transaction(partial(_finish, results=results, skip_locked=True), retries=1)
    except sa.exc.SQLAlchemyError as error:
        log.warning("group_commit_failed", extra={"reason": type(error).__name__, "results": len(results)})
        return {}


def _finish(db: Session, results: Sequence[Result], *, skip_locked: bool = False) -> dict[Result, Completion]:
    recorded = _recorded_outcomes(db, results, skip_locked=skip_locked)
    doubted = _doubted_rejections(db, results)
    if skip_locked:
        unlocked = _lock_grants(db, results)
        results = [found for found in results if found.attempt.id in recorded and found.row.id in unlocked]
    now = database.db_now(db)
    new = {
        result: _apply(db, result, now, is_doubted=result.kind in doubted)
        for result in results
        if recorded.get(result.attempt.id) is None
    }
    _store_completions(db, new, now)
    changed = [result.row.spotify_user_id for result in results]
    announce(db, connections=changed, best_effort=True)
    return {
        # If it was recorded before, the reply to an earlier COMMIT was lost.
        result: new.get(result) or Completion(Outcome(recorded[result.attempt.id] or ""), now)
        for result in results
    }


def _recorded_outcomes(db: Session, results: Sequence[Result], *, skip_locked: bool) -> dict[str, str | None]:
    """Return the outcomes that the history has already, by attempt.

    The rows are locked, so that this waits for an earlier COMMIT of ours that is slow rather than lost.
    """
    ids = _history.c.attempt_id.in_([result.attempt.id for result in results])
    found = db.connection().execute(
        sa.select(_history.c.attempt_id, _history.c.outcome)
        .where(ids)
        .with_for_update(skip_locked=skip_locked)
    )
    return {row.attempt_id: row.outcome for row in found}


def _doubted_rejections(db: Session, results: Sequence[Result]) -> set[ApplicationKind]:
    """Return the kinds of applications whose grants' rejections are not recorded now.

    Asks only about those with a rejection, because this locks a row.
    """
    rejected = {result.kind for result in results if result.outcome is Outcome.INVALID_GRANT}
    # In the same order everywhere, so that two do not deadlock.
    return {kind for kind in ApplicationKind if kind in rejected and breaker.is_revocations_open(db, kind)}


def _lock_grants(db: Session, results: Sequence[Result]) -> set[int]:
    """Lock the grants that no other transaction has locked. Returns their ids."""
    ids = grants.c.id.in_([result.row.id for result in results])
    locked = sa.select(grants.c.id).where(ids).with_for_update(skip_locked=True)
    return set(db.connection().scalars(locked))


def _apply(db: Session, result: Result, now: datetime, *, is_doubted: bool) -> Completion:
    """Write a result to its grant. With `is_doubted`, a rejection only delays the grant's next attempt."""
    row, outcome = result.row, result.outcome
    if outcome is Outcome.INVALID_GRANT and is_doubted:
        values = transitions.after_failure(row, _REJECTED_PROBE_WAIT, now)
    else:
        values = result.transition(now)
    # A success is stored even if another caller holds the lease now. A failure must not end that lease.
    own_lease = () if outcome is Outcome.REFRESHED else (AccessToken.attempt_id == result.attempt.id,)
    if compare_and_swap(db, row, values, *own_lease):
        completion = Completion(outcome, now, values)
    else:
        completion = Completion(Outcome.SUPERSEDED, now)
        _keep_orphan(db, row, result.orphan_token)
    return completion


def _keep_orphan(db: Session, row: AccessToken, orphan_token: object) -> None:
    if orphan_token is not None:
        same_grant = sa.and_(AccessToken.id == row.id, AccessToken.grant_id == row.grant_id)
        db.execute(sa.update(AccessToken).where(same_grant).values(spare_refresh_token=orphan_token))


def _store_completions(db: Session, completions: dict[Result, Completion], now: datetime) -> None:
    for outcome in {completion.outcome for completion in completions.values()}:
        effective = 1 if outcome is Outcome.REFRESHED else None
        ids = [result.attempt.id for result, found in completions.items() if found.outcome is outcome]
        db.connection().execute(
            sa.update(_history)
            .where(_history.c.attempt_id.in_(ids))
            .values(outcome=outcome, effective=effective, finished_at=now)
        )
