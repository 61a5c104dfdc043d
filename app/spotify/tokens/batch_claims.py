"""Claims what is due, many grants in one transaction, for a scheduler."""

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyAppRefused, SpotifyMisconfigured, SpotifyNotConnected, SpotifyUnavailable
from app.infra import database
from app.infra.database import run_in_transaction
from app.infra.encryption import TokenCipher
from app.models import AccessToken, GrantState, SpotifyApp, TokenRefresh
from app.models.access_token import LEASE
from app.models.times import LONGEST_WAIT
from app.spotify.applications import pauses
from app.spotify.applications.lookup import Applications, rows_of_grants
from app.spotify.clients.application import ALL_KINDS, Application, ApplicationKind
from app.spotify.tokens import attempts, breaker, refresh_queue, transitions
from app.spotify.tokens.encryption import UNDECRYPTABLE_WAIT, decrypt_token
from app.spotify.tokens.grant_row import compare_and_swap
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

    @property
    def kind(self) -> ApplicationKind:
        """Whose application the grant belongs to."""
        return ApplicationKind.of(self.row.client_id)


@dataclass
class Batch:
    """What a scheduler has claimed. Without candidates, nothing is due."""

    candidates: int
    claims: list[Claim] = field(default_factory=list)
    postponed: int = 0
    unusable: int = 0  # of those that are postponed: they cannot be decrypted, or their application is gone
    paused: set[ApplicationKind] = field(default_factory=set)  # by the breaker

    @property
    def is_locked(self) -> bool:
        """Whether other schedulers hold everything that is due."""
        return bool(self.candidates) and not (self.claims or self.postponed or self.paused)


class BatchClaims:
    """Claims grants that are due, and takes those out of the queue that need no refresh."""

    def __init__(self, cipher: TokenCipher, applications: Applications, config: Config) -> None:
        self._cipher = cipher
        self._applications = applications
        self._refresh_lead = config.refresh_lead
        self._active_for = timedelta(days=config.refresh_active_days)

    def claim(self, limit: int, due_by: datetime, kinds: frozenset[ApplicationKind] = ALL_KINDS) -> Batch:
        """Claim up to `limit` grants that were due by `due_by`, next to expire first.

        `kinds` restricts them to grants of these kinds of applications. Any number of schedulers can do this
        at the same time.
        """
        for _ in range(_TRIES):
            send_until = attempts.send_deadline()
            batch = run_in_transaction(partial(self._claim, limit, due_by, kinds, send_until))
            if not batch.is_locked:
                break
            time.sleep(_PAUSE_SECONDS)  # they are about to claim it
        return batch

    def _claim(
        self, limit: int, due_by: datetime, kinds: frozenset[ApplicationKind], send_until: float, db: Session
    ) -> Batch:
        # More than needed, because other schedulers may have locked the first ones.
        ids = refresh_queue.earliest(db, 4 * limit, due_by, kinds)
        batch = Batch(len(ids))
        if not ids:
            return batch
        now = database.db_now(db)
        found: list[_Refreshable] = []
        while ids and len(found) < limit:
            wanted = limit - len(found)
            locked = refresh_queue.lock(db, ids[:wanted], due_by, now)
            found += self._refreshable(db, locked, now, batch)
            del ids[:wanted]
        claims = [
            Claim(each.due.row, _attempt(db, each, now, send_until), each.application, each.refresh_token)
            for each in _admitted(db, found, now, batch)
        ]
        taken = attempts.take_leases(db, {claim.row: claim.attempt for claim in claims}, now)
        batch.claims = [claim for claim in claims if claim.row in taken]
        return batch

    def _refreshable(
        self, db: Session, locked: Sequence[DueGrant], now: datetime, batch: Batch
    ) -> list["_Refreshable"]:
        """Return the grants that need a refresh, with what to send, and postpone the others."""
        found = []
        own_applications = rows_of_grants(db, [due.row for due in locked])
        for due in locked:
            own = own_applications.get(due.row.spotify_user_id)
            postponed = self._postponed(due, own, now)
            if postponed is None:
                try:
                    application = self._applications.choose(due.row, own)
                    refresh_token = decrypt_token(self._cipher, due.row, "refresh_token")
                    found.append(_Refreshable(due, application, refresh_token, own))
                except (SpotifyNotConnected, SpotifyUnavailable):
                    batch.unusable += 1
                    postponed = {"due_at": now + UNDECRYPTABLE_WAIT}
            if postponed is not None:
                batch.postponed += 1
                compare_and_swap(db, due.row, postponed)
        return found

    def _postponed(self, due: DueGrant, own: SpotifyApp | None, now: datetime) -> Values | None:
        """Return what to write to a grant that needs no refresh now, or has to wait. None if it needs one."""
        row = due.row
        is_idle = row.state == GrantState.ACTIVE and due.last_used_at < now - self._active_for
        if is_idle or row.state == GrantState.REAUTHORIZATION_REQUIRED:
            return {"due_at": None}  # until `refresh_queue.reactivate`
        if row.is_backing_off(now):
            return {"due_at": row.not_before}
        if row.is_valid_for(transitions.latest_lead(self._refresh_lead), now=now):  # refreshed by a request
            return {"due_at": transitions.next_refresh_at(row.expires_at, row.lifetime, self._refresh_lead)}
        if not self._applications.can_use(row):
            return {"due_at": now + LONGEST_WAIT}  # the setting may have changed by then
        if own is not None and pauses.is_paused(own, now):
            return {"due_at": own.paused_until}
        return None


@dataclass(frozen=True)
class _Refreshable:
    """A grant that needs a refresh, and what to send."""

    due: DueGrant
    application: Application
    refresh_token: str = field(repr=False)
    own: SpotifyApp | None  # the application's row, if a user has registered it
    is_probe: bool = False  # the breaker was open
    probes_application: bool = False  # it was paused

    @property
    def kind(self) -> ApplicationKind:
        return ApplicationKind.of(self.due.row.client_id)


def _admitted(
    db: Session, found: Sequence[_Refreshable], now: datetime, batch: Batch
) -> Iterator[_Refreshable]:
    """Yield the grants that the breaker and the pauses of their applications let through.

    Of each kind of application, the breaker admits all, a probe, or none. It is asked first, because an
    application whose probe is taken waits for its outcome.
    """
    for kind in ApplicationKind:
        of_kind = [each for each in found if each.kind is kind]
        try:
            is_probe = bool(of_kind) and breaker.require_closed(db, kind, now)
        except (SpotifyUnavailable, SpotifyMisconfigured):
            batch.paused.add(kind)
            continue
        for each in of_kind:
            try:
                probes = each.own is not None and pauses.require_active(db, each.own, now)
            except (SpotifyAppRefused, SpotifyUnavailable):  # another grant is the application's probe
                waits_until = each.own.paused_until if each.own is not None else None
                compare_and_swap(db, each.due.row, {"due_at": waits_until or now + LEASE})
                batch.postponed += 1
                continue
            yield replace(each, is_probe=is_probe, probes_application=probes)
            if is_probe:
                break


def _attempt(db: Session, found: _Refreshable, now: datetime, send_until: float) -> Attempt:
    row = found.due.row
    return Attempt(
        uuid.uuid4().hex,
        attempts.unused_generation(db, row) if found.due.is_refreshed else row.generation,
        now,
        send_until,
        found.application,
        found.is_probe,
        found.probes_application,
    )


def abandon(claims: Sequence[Claim]) -> None:
    """Give up claims for which no call was made, so that others can claim the grants immediately."""

    def work(db: Session) -> None:
        for claim in sorted(claims, key=lambda claim: claim.row.id):  # so that two do not deadlock
            claim.row.generation = claim.attempt.generation
            released: Values = {"attempt_id": None, "lease_until": None, "due_at": claim.row.due_at}
            compare_and_swap(db, claim.row, released, AccessToken.attempt_id == claim.attempt.id)
        ids = TokenRefresh.attempt_id.in_([claim.attempt.id for claim in claims])
        db.execute(sa.delete(TokenRefresh).where(ids).execution_options(synchronize_session=False))

    if claims:
        run_in_transaction(work, is_idempotent=True)
