"""Claims and finishes attempts to refresh a grant, each in one transaction.

Only one caller can win a claim, and the result is written with a compare-and-swap on
(`grant_id`, `generation`). `docs/custody.md` explains why this is safe.
"""

import logging
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import run_in_transaction_until
from app.infra.row_versions import announce
from app.models import AccessToken, TokenRefresh
from app.models.access_token import LEASE
from app.models.token_refresh import Outcome
from app.spotify.tokens import breaker, transitions
from app.spotify.tokens.transitions import Transition, Values

log = logging.getLogger(__name__)

# How long to keep trying to store a result. After the lease, another caller may have refreshed the grant;
# but a new refresh token may be the only valid one, so it is worth more time.
STORE_SECONDS, STORE_ORPHAN_TOKEN_SECONDS = 25.0, 300.0
_CLAIM_SECONDS = 3.0
# A call of 10 s that starts within this time of the claim ends within the lease.
_SEND_WITHIN_SECONDS = 15.0
# While rejections may be wrong, a rejected grant waits this long, so that the next probe is another grant's.
_REJECTED_PROBE_WAIT = timedelta(minutes=10)


@dataclass(frozen=True)
class Attempt:
    """A claim on one generation of a grant."""

    id: str
    generation: int
    claimed_at: datetime
    send_until: float  # `time.monotonic`


@dataclass(frozen=True)
class Completion:
    """How an attempt ended, and when that was recorded.

    `written` holds the columns that were written to the grant's row. It is None if nothing was written, or
    if the reply to an earlier COMMIT of the same result was lost.
    """

    outcome: Outcome
    at: datetime
    written: Values | None = None


def claim(row: AccessToken) -> Attempt | None:
    """Take the lease on this generation and record the attempt. Returns None if another caller was first.

    Raises:
        SpotifyUnavailable: The breaker is open.
        SpotifyMisconfigured: The breaker is open because Spotify rejects our client id or secret.
    """
    attempt_id, send_until = uuid.uuid4().hex, time.monotonic() + _SEND_WITHIN_SECONDS

    def work(db: Session) -> Attempt | None:
        recorded = db.scalar(_attempt_row(attempt_id))
        if recorded is not None:  # the reply to an earlier COMMIT was lost
            return Attempt(attempt_id, recorded.generation, recorded.started_at, send_until)
        now = database.db_now(db)
        generation = _unused_generation(db, row)
        values: Values = {"attempt_id": attempt_id, "lease_until": now + LEASE}
        if generation != row.generation:
            values["generation"] = generation
            announce(db, connections=[row.spotify_user_id], best_effort=True)
        claimed = update(
            db,
            row,
            values,
            AccessToken.not_leased(now),
            AccessToken.not_backing_off(now),
        )
        if not claimed:
            return None
        breaker.require_closed(db, now)
        db.add(
            TokenRefresh(
                spotify_user_id=row.spotify_user_id,
                grant_id=row.grant_id,
                generation=generation,
                attempt_id=attempt_id,
                started_at=now,
            )
        )
        return Attempt(attempt_id, generation, now, send_until)

    return run_in_transaction_until(time.monotonic() + _CLAIM_SECONDS, work)


def finish(
    attempt: Attempt,
    row: AccessToken,
    outcome: Outcome,
    transition: Transition,
    *,
    orphan_token: object = None,
) -> Completion:
    """Record an attempt's outcome and apply it to the grant, in one transaction.

    The grant is changed only if it is still at the generation that was refreshed. Otherwise a consent, a
    disconnect, or another refresh has superseded the attempt. Then only `orphan_token`, a new refresh
    token of the same grant, is kept, as a spare.

    Raises:
        SQLAlchemyError: The result could not be stored.
    """
    # Spotify might not send this result again, so a deadlock or a broken connection must not lose it.
    seconds = STORE_SECONDS if orphan_token is None else STORE_ORPHAN_TOKEN_SECONDS
    try:
        return run_in_transaction_until(
            time.monotonic() + seconds,
            lambda db: _finish(db, attempt, row, outcome, transition, orphan_token),
        )
    except sa.exc.SQLAlchemyError:
        log.error(
            "token_response_lost",
            extra={
                "spotify_user_id": row.spotify_user_id,
                "outcome": outcome,
                "new_refresh_token": orphan_token is not None,
            },
        )
        raise


def _finish(
    db: Session,
    attempt: Attempt,
    row: AccessToken,
    outcome: Outcome,
    transition: Transition,
    orphan_token: object,
) -> Completion:
    recorded = db.scalar(_attempt_row(attempt.id))
    now = database.db_now(db)
    if recorded is not None and recorded.outcome is not None:
        return Completion(Outcome(recorded.outcome), now)  # the reply to an earlier COMMIT was lost
    breaker_open = outcome is Outcome.INVALID_GRANT and breaker.is_revocations_open(db)
    values = transitions.after_failure(row, _REJECTED_PROBE_WAIT, now) if breaker_open else transition(now)
    # A success is stored even if another caller holds the lease now. A failure must not end that lease.
    announce(db, connections=[row.spotify_user_id], best_effort=True)
    own_lease = () if outcome is Outcome.REFRESHED else (AccessToken.attempt_id == attempt.id,)
    if update(db, row, values, *own_lease):
        completion = Completion(outcome, now, values)
    else:
        completion = Completion(Outcome.SUPERSEDED, now)
        _keep_orphan(db, row, orphan_token)
    _store_completion(db, attempt, completion)
    return completion


def update(db: Session, row: AccessToken, values: Values, *conditions: sa.ColumnElement[bool]) -> bool:
    """Compare and swap: write to a grant's row if it is still at the generation that was read."""
    updated = db.execute(
        sa.update(AccessToken)
        .where(
            AccessToken.id == row.id,
            AccessToken.grant_id == row.grant_id,
            AccessToken.generation == row.generation,
            *conditions,
        )
        .values(values)
    )
    return updated.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def _attempt_row(attempt_id: str) -> sa.Select[TokenRefresh]:
    # Locked, so that this waits for an earlier COMMIT of ours that is slow rather than lost.
    return sa.select(TokenRefresh).where(TokenRefresh.attempt_id == attempt_id).with_for_update()


def _unused_generation(db: Session, row: AccessToken) -> int:
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


def _store_completion(db: Session, attempt: Attempt, completion: Completion) -> None:
    effective = 1 if completion.outcome is Outcome.REFRESHED else None
    db.execute(
        sa.update(TokenRefresh)
        .where(TokenRefresh.attempt_id == attempt.id)
        .values(outcome=completion.outcome, effective=effective, finished_at=completion.at)
    )
