"""Claims and finishes attempts to refresh grants, one or many in each transaction.

Only one caller can win a claim, and a result is written with a compare-and-swap on (`grant_id`,
`generation`). `docs/custody.md` explains why this is safe.
"""

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import run_in_transaction, run_in_transaction_until
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyApp, TokenRefresh
from app.models.access_token import LEASE
from app.models.token_refresh import Outcome
from app.spotify.applications import pauses
from app.spotify.clients.application import Application, ApplicationKind
from app.spotify.tokens import breaker, transitions
from app.spotify.tokens.results import Attempt, Result
from app.spotify.tokens.transitions import Values

log = logging.getLogger(__name__)

_CLAIM_SECONDS = 3.0
# A call of 10 s that starts within this time of the claim ends within the lease.
_SEND_WITHIN_SECONDS = 15.0
# While rejections may be wrong, a rejected grant waits this long, so that the next probe is another grant's.
_REJECTED_PROBE_WAIT = timedelta(minutes=10)

# Without the ORM, which takes ten times as long for a statement.
_grants = cast("sa.Table", AccessToken.__table__)
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


def claim(row: AccessToken, application: Application) -> Attempt | None:
    """Take the lease on this generation and record the attempt. Returns None if another caller was first.

    Raises:
        SpotifyUnavailable: The breaker is open, or the application is paused.
        SpotifyMisconfigured: The breaker is open because Spotify rejects our client id or secret.
        SpotifyAppRefused: The application is paused because Spotify rejects it.
    """
    attempt_id, send_until = uuid.uuid4().hex, send_deadline()

    def new_attempt(generation: int, claimed_at: datetime) -> Attempt:
        return Attempt(attempt_id, generation, claimed_at, send_until, spotify_app_id=application.id)

    def work(db: Session) -> Attempt | None:
        recorded = db.scalar(
            sa.select(TokenRefresh).where(TokenRefresh.attempt_id == attempt_id).with_for_update()
        )
        if recorded is not None:  # the reply to an earlier COMMIT was lost
            return new_attempt(recorded.generation, recorded.started_at)
        now = database.db_now(db)
        attempt = new_attempt(unused_generation(db, row), now)
        if not take_leases(db, {row: attempt}, now, _unchanged(row)):
            return None
        is_probe = breaker.require_closed(db, ApplicationKind.of(row.client_id), now)
        if application.id is None:
            return replace(attempt, is_probe=is_probe)
        probes_application = pauses.require_active(db, db.get_one(SpotifyApp, application.id), now)
        return replace(attempt, is_probe=is_probe, probes_application=probes_application)

    return run_in_transaction_until(time.monotonic() + _CLAIM_SECONDS, work)


def send_deadline() -> float:
    """Return until when a call may start if its grant is claimed now (`time.monotonic`)."""
    return time.monotonic() + _SEND_WITHIN_SECONDS


def _unchanged(row: AccessToken) -> sa.ColumnElement[bool]:
    """In SQL: no attempt has failed since the row was read.

    A failure changes the row, but not its generation. It may have replaced the refresh token: presenting
    the old one again could end the grant, and storing it again would lose the new one.
    """
    read = (AccessToken.state, AccessToken.failures, AccessToken.refresh_token)
    return sa.and_(*(column == getattr(row, column.key) for column in read))


def take_leases(
    db: Session, attempts: dict[AccessToken, Attempt], now: datetime, *conditions: sa.ColumnElement[bool]
) -> dict[AccessToken, Attempt]:
    """Take the leases of these grants and record the attempts. Returns those that no other caller has."""
    is_free = (AccessToken.not_leased(now), AccessToken.not_backing_off(now), *conditions)
    taken = {}
    for row, attempt in attempts.items():
        # If this process dies, the scheduler continues at `due_at`.
        values: Values = {"attempt_id": attempt.id, "lease_until": now + LEASE, "due_at": now + LEASE}
        if attempt.generation != row.generation:
            values["generation"] = attempt.generation
            announce(db, connections=[row.spotify_user_id], best_effort=True)
        if update(db, row, values, *is_free):
            taken[row] = attempt
    if taken:
        rows = [
            {
                "spotify_user_id": row.spotify_user_id,
                "grant_id": row.grant_id,
                "generation": attempt.generation,
                "spotify_app_id": attempt.spotify_app_id,
                "attempt_id": attempt.id,
                "started_at": now,
            }
            for row, attempt in taken.items()
        ]
        db.connection().execute(sa.insert(_history), rows)
    return taken


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
        result: _apply(db, result, now, breaker_open=result.kind in doubted)
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
    ids = _grants.c.id.in_([result.row.id for result in results])
    locked = sa.select(_grants.c.id).where(ids).with_for_update(skip_locked=True)
    return set(db.connection().scalars(locked))


def _apply(db: Session, result: Result, now: datetime, *, breaker_open: bool) -> Completion:
    row, outcome = result.row, result.outcome
    if outcome is Outcome.INVALID_GRANT and breaker_open:
        values = transitions.after_failure(row, _REJECTED_PROBE_WAIT, now)
    else:
        values = result.transition(now)
    # A success is stored even if another caller holds the lease now. A failure must not end that lease.
    own_lease = () if outcome is Outcome.REFRESHED else (AccessToken.attempt_id == result.attempt.id,)
    if update(db, row, values, *own_lease):
        completion = Completion(outcome, now, values)
    else:
        completion = Completion(Outcome.SUPERSEDED, now)
        _keep_orphan(db, row, result.orphan_token)
    return completion


_COMPARE_AND_SWAP = sa.update(_grants).where(
    _grants.c.id == sa.bindparam("same_id"),
    _grants.c.grant_id == sa.bindparam("same_grant_id"),
    _grants.c.generation == sa.bindparam("same_generation"),
)


def update(db: Session, row: AccessToken, values: Values, *conditions: sa.ColumnElement[bool]) -> bool:
    """Compare and swap: write to a grant's row if it is still at the generation that was read."""
    version = {"same_id": row.id, "same_grant_id": row.grant_id, "same_generation": row.generation}
    updated = db.connection().execute(_COMPARE_AND_SWAP.where(*conditions), {**version, **values})
    return updated.rowcount == 1


def unused_generation(db: Session, row: AccessToken) -> int:
    """Return the row's generation, or the one after the last that the history shows as refreshed.

    Restoring `access_tokens` alone sets a generation back. Refreshing it again could never be stored,
    because the history already has an effective refresh of that generation.
    """
    refreshed = db.scalar(
        sa.select(sa.func.max(TokenRefresh.generation)).where(
            TokenRefresh.spotify_user_id == row.spotify_user_id,
            TokenRefresh.grant_id == row.grant_id,
            TokenRefresh.generation >= row.generation,
            TokenRefresh.effective == 1,
        )
    )
    if refreshed is None:
        return row.generation
    log.warning("token_generation_repaired", extra={"spotify_user_id": row.spotify_user_id})
    return refreshed + 1


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
