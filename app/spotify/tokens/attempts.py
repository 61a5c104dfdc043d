"""One attempt to refresh a grant: the claim that only one caller wins, and the compare-and-swap at its end.

See `docs/custody.md` for why this is safe.
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
from app.models import AccessToken, TokenRefresh
from app.models.access_token import LEASE
from app.models.token_refresh import Outcome
from app.spotify.tokens import breaker, transitions
from app.spotify.tokens.transitions import Transition, Values

log = logging.getLogger(__name__)

# How long to keep trying to store an answer. After the lease someone else may have refreshed the
# grant; but a new refresh token may be the only good one, so it is worth more patience.
STORE_SECONDS, STORE_ONLY_COPY_SECONDS = 25.0, 300.0
_CLAIM_SECONDS = 3.0
# A call of 10 s that begins by then ends within the lease.
_SEND_WITHIN_SECONDS = 15.0
# A probe that was refused while the breaker doubts refusals leaves the next probe to another link.
_REFUSED_PROBE_WAITS = timedelta(minutes=10)


@dataclass(frozen=True)
class Attempt:
    """A claim on one generation of a grant."""

    id: str
    generation: int
    claimed_at: datetime
    send_until: float  # `time.monotonic`


def claim(row: AccessToken) -> Attempt | None:
    """Take the lease on this generation and record the attempt. None if someone else was first.

    Raises:
        SpotifyUnavailable, SpotifyMisconfigured: refreshing is held back for everybody.
    """
    attempt_id, send_until = uuid.uuid4().hex, time.monotonic() + _SEND_WITHIN_SECONDS

    def unit(db: Session) -> Attempt | None:
        mine = db.scalar(_attempt_row(attempt_id))
        if mine is not None:  # the answer to the COMMIT was lost
            return Attempt(attempt_id, mine.generation, mine.started_at, send_until)
        now = database.db_now(db)
        generation = _unused_generation(db, row)
        claimed = update(
            db,
            row,
            {"attempt_id": attempt_id, "lease_until": now + LEASE, "generation": generation},
            AccessToken.has_no_lease(now),
            AccessToken.has_no_pause(now),
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

    return run_in_transaction_until(time.monotonic() + _CLAIM_SECONDS, unit)


def _unused_generation(db: Session, row: AccessToken) -> int:
    """The row's generation, or the first one after those that the history knows to be refreshed.

    A restore of `access_tokens` alone sets a generation back. Its refresh could then never be stored,
    because the history already has one.
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
    log.warning("token_generation_repaired", extra={"link": row.spotify_user_id})
    return refreshed + 1


def finish(
    attempt: Attempt, row: AccessToken, outcome: Outcome, after: Transition, *, only_copy: object = None
) -> Outcome:
    """Write an attempt's end and what it means for the grant, in one transaction.

    The grant is written only if it is still the one that was asked about: a consent, a
    disconnect or another refresh since then makes this news about the past. Of such news only a
    new refresh token of the same grant is kept, `only_copy`, as a spare.
    """

    def unit(db: Session) -> Outcome:
        written = db.scalar(_attempt_row(attempt.id))
        if written is not None and written.outcome is not None:
            return Outcome(written.outcome)  # the answer to the COMMIT was lost
        now = database.db_now(db)
        doubted = outcome is Outcome.INVALID_GRANT and breaker.doubts_revocations(db)
        values = transitions.after_failure(row, _REFUSED_PROBE_WAITS, now) if doubted else after(now)
        # A success is good whoever holds the lease by now. A failure must not end another's.
        mine = () if outcome is Outcome.REFRESHED else (AccessToken.attempt_id == attempt.id,)
        ended = outcome if update(db, row, values, *mine) else Outcome.SUPERSEDED
        if ended is Outcome.SUPERSEDED and only_copy is not None:
            same_grant = sa.and_(AccessToken.id == row.id, AccessToken.grant_id == row.grant_id)
            db.execute(sa.update(AccessToken).where(same_grant).values(spare_refresh_token=only_copy))
        db.execute(
            sa.update(TokenRefresh)
            .where(TokenRefresh.attempt_id == attempt.id)
            .values(outcome=ended, effective=1 if ended is Outcome.REFRESHED else None, finished_at=now)
        )
        return ended

    # Spotify's answer may be the only one: neither a deadlock nor a lost connection must cost it.
    patience = STORE_SECONDS if only_copy is None else STORE_ONLY_COPY_SECONDS
    try:
        return run_in_transaction_until(time.monotonic() + patience, unit)
    except sa.exc.SQLAlchemyError:
        lost = {"link": row.spotify_user_id, "outcome": outcome, "only_copy": only_copy is not None}
        log.error("token_answer_lost", extra=lost)
        raise


def _attempt_row(attempt_id: str) -> sa.Select[TokenRefresh]:
    """Locked, so that a COMMIT of ours that is slow rather than lost is waited for."""
    return sa.select(TokenRefresh).where(TokenRefresh.attempt_id == attempt_id).with_for_update()


def update(db: Session, row: AccessToken, values: Values, *conditions: sa.ColumnElement[bool]) -> bool:
    """Write to a grant's row if it is still at the generation that was read."""
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
