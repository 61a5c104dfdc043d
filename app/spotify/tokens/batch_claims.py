"""Claims what is due, many grants in one transaction, for a scheduler."""

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyMisconfigured, SpotifyUnavailable
from app.infra import database
from app.infra.database import run_in_transaction
from app.infra.encryption import TokenCipher
from app.models import AccessToken, GrantState, SpotifyApp, TokenRefresh
from app.spotify.applications.lookup import Applications, rows_of_grants
from app.spotify.clients.application import Application
from app.spotify.tokens import attempts, breaker, refresh_queue, transitions
from app.spotify.tokens.encryption import UNDECRYPTABLE_WAIT, decrypt_token
from app.spotify.tokens.refresh_queue import DueGrant
from app.spotify.tokens.results import Attempt
from app.spotify.tokens.transitions import Values
from config import Config

log = logging.getLogger(__name__)

# How often to look again while other schedulers hold everything that is due.
_TRIES, _PAUSE_SECONDS = 100, 0.01


@dataclass(frozen=True)
class Claim:
    """A grant that this process may refresh now."""

    row: AccessToken
    attempt: Attempt
    application: Application
    refresh_token: str = field(repr=False)


@dataclass
class Batch:
    """What a scheduler has claimed. Without candidates, nothing is due."""

    candidates: int
    claims: list[Claim] = field(default_factory=list)
    postponed: int = 0
    undecryptable: int = 0  # of those that are postponed
    is_paused: bool = False  # by the breaker

    @property
    def is_locked(self) -> bool:
        """Whether other schedulers hold everything that is due."""
        return bool(self.candidates) and not (self.claims or self.postponed or self.is_paused)


class BatchClaims:
    """Claims grants that are due, and takes those out of the queue that need no refresh."""

    def __init__(self, cipher: TokenCipher, applications: Applications, config: Config) -> None:
        self._cipher = cipher
        self._applications = applications
        self._refresh_lead = config.refresh_lead
        self._active_for = timedelta(days=config.refresh_active_days)

    def claim(self, limit: int, due_by: datetime) -> Batch:
        """Claim up to `limit` grants that were due by then, next to expire first.

        Any number of schedulers can do this at the same time.
        """
        for _ in range(_TRIES):
            send_until = attempts.send_deadline()
            batch = run_in_transaction(partial(self._claim, limit, due_by, send_until))
            if not batch.is_locked:
                break
            time.sleep(_PAUSE_SECONDS)  # they are about to claim it
        return batch

    def _claim(self, limit: int, due_by: datetime, send_until: float, db: Session) -> Batch:
        # More than needed, because other schedulers may have locked the first ones.
        ids = refresh_queue.earliest(db, 4 * limit, due_by)
        batch = Batch(len(ids))
        if not ids:
            return batch
        now = database.db_now(db)
        tokens: dict[DueGrant, tuple[Application, str]] = {}
        while ids and len(tokens) < limit:
            wanted = limit - len(tokens)
            locked = refresh_queue.lock(db, ids[:wanted], due_by, now)
            tokens |= self._refreshable(db, locked, now, batch)
            del ids[:wanted]
        tokens, is_probe = self._admitted_by_breaker(db, tokens, now, batch)
        claims = [
            Claim(due.row, _attempt(db, due, now, send_until, is_probe=is_probe), application, token)
            for due, (application, token) in tokens.items()
        ]
        taken = attempts.take_leases(db, {claim.row: claim.attempt for claim in claims}, now)
        batch.claims = [claim for claim in claims if claim.row in taken]
        return batch

    def _refreshable(
        self, db: Session, locked: Sequence[DueGrant], now: datetime, batch: Batch
    ) -> dict[DueGrant, tuple[Application, str]]:
        """Return the grants that need a refresh, with what to send, and postpone the others."""
        tokens = {}
        own_applications = rows_of_grants(db, [due.row for due in locked])
        for due in locked:
            row = due.row
            postponed = self._postponed(due, now)
            if postponed is None:
                try:
                    application = self._application(row, own_applications)
                    tokens[due] = application, decrypt_token(self._cipher, row, "refresh_token")
                except SpotifyUnavailable:
                    batch.undecryptable += 1
                    postponed = {"due_at": now + UNDECRYPTABLE_WAIT}
            if postponed is not None:
                batch.postponed += 1
                attempts.update(db, row, postponed)
        return tokens

    def _application(self, grant: AccessToken, own: dict[int, SpotifyApp]) -> Application:
        """Return the application that a grant was issued to.

        Raises:
            SpotifyUnavailable: It is gone, or its secret cannot be decrypted.
        """
        if grant.client_id is None:
            return self._applications.deployment
        if (row := own.get(grant.spotify_user_id)) is None:
            raise SpotifyUnavailable
        return self._applications.decrypt(row)

    def _postponed(self, due: DueGrant, now: datetime) -> Values | None:
        """Return what to write to a grant that needs no refresh now, or None if it needs one."""
        row = due.row
        is_idle = row.state == GrantState.ACTIVE and due.last_used_at < now - self._active_for
        if is_idle or row.state == GrantState.REAUTHORIZATION_REQUIRED:
            return {"due_at": None}  # until `refresh_queue.reactivate`
        if row.is_backing_off(now):
            return {"due_at": row.not_before}
        if row.is_valid_for(transitions.latest_lead(self._refresh_lead), now=now):  # refreshed by a request
            return {"due_at": transitions.next_refresh_at(row.expires_at, row.lifetime, self._refresh_lead)}
        return None

    def _admitted_by_breaker(
        self, db: Session, tokens: dict[DueGrant, tuple[Application, str]], now: datetime, batch: Batch
    ) -> tuple[dict[DueGrant, tuple[Application, str]], bool]:
        """Return those that the breaker lets through: all, the first, or none. The first is a probe then."""
        try:
            is_probe = bool(tokens) and breaker.require_closed(db, now)
        except (SpotifyUnavailable, SpotifyMisconfigured):
            batch.is_paused = True
            return {}, False
        return (dict(list(tokens.items())[:1]) if is_probe else tokens), is_probe


def _attempt(db: Session, due: DueGrant, now: datetime, send_until: float, *, is_probe: bool) -> Attempt:
    generation = attempts.unused_generation(db, due.row) if due.is_refreshed else due.row.generation
    return Attempt(uuid.uuid4().hex, generation, now, send_until, is_probe)


def abandon(claims: Sequence[Claim]) -> None:
    """Give up claims for which no call was made, so that others can claim the grants immediately."""

    def work(db: Session) -> None:
        for claim in sorted(claims, key=lambda claim: claim.row.id):  # so that two do not deadlock
            claim.row.generation = claim.attempt.generation
            released: Values = {"attempt_id": None, "lease_until": None, "due_at": claim.row.due_at}
            attempts.update(db, claim.row, released, AccessToken.attempt_id == claim.attempt.id)
        ids = TokenRefresh.attempt_id.in_([claim.attempt.id for claim in claims])
        db.execute(sa.delete(TokenRefresh).where(ids).execution_options(synchronize_session=False))

    if claims:
        run_in_transaction(work, is_idempotent=True)
