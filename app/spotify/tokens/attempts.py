"""Begins attempts to refresh grants: claims the lease, which only one caller can win, and records them.

`docs/custody.md` explains why this is safe.
"""

import logging
import time
import uuid
from dataclasses import replace
from datetime import datetime
from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.database import run_in_transaction_until
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyApp, TokenRefresh
from app.models.access_token import LEASE
from app.spotify.applications import pauses
from app.spotify.clients.application import Application, ApplicationKind
from app.spotify.tokens import breaker
from app.spotify.tokens.grant_row import compare_and_swap
from app.spotify.tokens.results import Attempt
from app.spotify.tokens.transitions import Values

log = logging.getLogger(__name__)

_CLAIM_SECONDS = 3.0
# A call of 10 s that starts within this time of the claim ends within the lease.
_SEND_WITHIN_SECONDS = 15.0

# Without the ORM, which takes ten times as long for a statement.
_history = cast("sa.Table", TokenRefresh.__table__)


def claim(row: AccessToken, application: Application) -> Attempt | None:
    """Take the lease on this generation and record the attempt. Returns None if another caller was first.

    Raises:
        SpotifyUnavailable: The breaker is open, or the application is paused.
        SpotifyMisconfigured: The breaker is open because Spotify rejects our client id or secret.
        SpotifyAppRefused: The application is paused because Spotify rejects it.
    """
    attempt_id, send_until = uuid.uuid4().hex, send_deadline()

    def new_attempt(generation: int, claimed_at: datetime) -> Attempt:
        return Attempt(attempt_id, generation, claimed_at, send_until, application)

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
        if compare_and_swap(db, row, values, *is_free):
            taken[row] = attempt
    if taken:
        rows = [
            {
                "spotify_user_id": row.spotify_user_id,
                "grant_id": row.grant_id,
                "generation": attempt.generation,
                "spotify_app_id": attempt.application.id,
                "attempt_id": attempt.id,
                "started_at": now,
            }
            for row, attempt in taken.items()
        ]
        db.connection().execute(sa.insert(_history), rows)
    return taken


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
