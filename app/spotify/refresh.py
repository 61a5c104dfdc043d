"""One refresh of one grant: exactly once, whoever else is at it, and nothing lost when things break.

1. claim    one UPDATE that only one caller can win: this generation, no running lease;
2. call     Spotify, with no transaction open and a deadline well inside the lease;
3. commit   a compare-and-swap on (grant_id, generation), with the row that proves it.

The lock in Redis comes before and spares the losers their try. Nothing depends on it. The whole
argument, and what is promised when something breaks, is in `docs/custody.md`.
"""

import logging
import math
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import database
from app.database import database_now, reading, write_until
from app.models import AccessToken, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.parts import parts
from app.problems import SpotifyMisconfigured, SpotifyNotConnected, SpotifyUnavailable
from app.spotify import breaker, outcomes
from app.spotify.accounts import Grant, InvalidGrant, Misconfigured, RateLimited, SpotifyError
from app.spotify.outcomes import After, Values
from app.spotify.vault import seal, unseal

log = logging.getLogger(__name__)

# A grant's row, and what the database's clock said when it was read.
Reading = tuple[AccessToken, datetime]

LEASE = timedelta(seconds=30)  # outlasts the 10 s that a call may take
# After so long without the lock a caller asks the database itself.
LOCK_PATIENCE_SECONDS = 2.0
# How long to go on trying to store an answer. Beyond the lease somebody else may have refreshed the
# grant; but a new refresh token may be the only good one, so it is worth more patience.
STORE_SECONDS, STORE_ONLY_COPY_SECONDS = 25.0, 300.0
_CLAIM_SECONDS = 3.0
# A call of 10 s that begins by then ends within the lease.
_SEND_WITHIN_SECONDS = 15.0
# A probe that was refused while the breaker doubts refusals leaves the next probe to another link.
_REFUSED_PROBE_WAITS = timedelta(minutes=10)
_UNREADABLE_WAITS = timedelta(hours=1)


class GrantEnded(Exception):
    """Spotify no longer honours the grant; the person has to consent again."""


class UnderWay(SpotifyUnavailable):
    """Somebody else is refreshing it, and takes longer than was waited for."""


@dataclass(frozen=True)
class _Attempt:
    """A claim on one generation of a grant."""

    id: str
    claimed_at: datetime
    send_until: float  # `time.monotonic`


def read(link_id: int) -> Reading:
    """A link's grant as it is committed now.

    Raises:
        SpotifyNotConnected: the link is gone.
    """
    with reading() as db:
        found = db.execute(
            sa.select(AccessToken, database_now()).where(AccessToken.spotify_user_id == link_id)
        ).one_or_none()
    if found is None:
        raise SpotifyNotConnected
    return found[0], found[1]


def refresh(row: AccessToken, lead: timedelta | None, *, wait_seconds: float) -> Reading:
    """Refresh, or share the result of whoever is refreshing. Returns the grant as it stands then.

    A token that outlives `lead` need not be refreshed; without a lead it must be, however long it lives.
    One that somebody else has refreshed since `row` was read is good if it lives at all.

    Raises:
        GrantEnded, SpotifyNotConnected, SpotifyUnavailable, SpotifyMisconfigured
    """
    link_id, seen = row.spotify_user_id, (row.grant_id, row.generation)
    deadline = time.monotonic() + wait_seconds
    with parts().locks.hold(link_id, patience=min(wait_seconds, LOCK_PATIENCE_SECONDS)):
        while True:
            row, now = read(link_id)
            overtaken = (row.grant_id, row.generation) != seen
            needed = timedelta(0) if overtaken else lead
            if needed is not None and row.lasts(needed, now=now):
                return row, now
            check_may_try(row, now)
            if not row.is_leased(now):
                refresh_token = _refresh_token(row)
                attempt = _claim(row)
                if attempt is not None:
                    return _call(row, attempt, refresh_token)
            if time.monotonic() >= deadline:
                raise UnderWay
            time.sleep(0.1)


def check_may_try(row: AccessToken, now: datetime) -> None:
    """Share an earlier answer while it counts: a refusal, or a failure just now.

    Raises:
        GrantEnded, SpotifyUnavailable
    """
    waiting = row.not_before is not None and row.not_before > now
    if row.state == GrantState.REAUTHORIZATION_REQUIRED or (row.state == GrantState.SUSPECT and waiting):
        raise GrantEnded
    if waiting and row.not_before is not None:
        raise SpotifyUnavailable(retry_after=_seconds(row.not_before - now))


def _refresh_token(row: AccessToken) -> str:
    """The token to present. One that our keys do not open is reported and left alone: a key may be missing.

    Raises:
        SpotifyUnavailable
    """
    try:
        return unseal(row, "refresh_token")
    except SpotifyUnavailable:
        with database.writing() as db:  # or the scheduler would ask, and report, every half minute
            _update(db, row, {"due_at": database.now(db) + _UNREADABLE_WAITS})
        raise


def _claim(row: AccessToken) -> _Attempt | None:
    """Take the lease on this generation and note the attempt. None if somebody else was first.

    Raises:
        SpotifyUnavailable, SpotifyMisconfigured: refreshing is held back for everybody.
    """
    attempt_id, send_until = uuid.uuid4().hex, time.monotonic() + _SEND_WITHIN_SECONDS

    def unit(db: Session) -> _Attempt | None:
        mine = db.scalar(_attempt_row(attempt_id))
        if mine is not None:
            return _Attempt(attempt_id, mine.started_at, send_until)  # the answer to the COMMIT was lost
        now = database.now(db)
        claimed = _update(
            db,
            row,
            {"attempt_id": attempt_id, "lease_until": now + LEASE},
            AccessToken.has_no_lease(now),
            AccessToken.has_no_pause(now),
        )
        if not claimed:
            return None
        breaker.pass_or_wait(db, now)
        db.add(
            TokenRefresh(
                spotify_user_id=row.spotify_user_id,
                grant_id=row.grant_id,
                generation=row.generation,
                attempt_id=attempt_id,
                started_at=now,
            )
        )
        return _Attempt(attempt_id, now, send_until)

    return write_until(time.monotonic() + _CLAIM_SECONDS, unit)


def _call(row: AccessToken, attempt: _Attempt, refresh_token: str) -> Reading:
    """Call Spotify under a claim, and write down whatever it says."""
    if time.monotonic() > attempt.send_until:
        # Paused since the claim. The lease may end during the call; the next owner is left to make it.
        raise SpotifyUnavailable
    try:
        grant = parts().accounts.refresh(refresh_token)
    except SpotifyError as error:
        return _fail(row, attempt, error)
    _commit(row, attempt, grant, refresh_token)
    return read(row.spotify_user_id)


def _commit(row: AccessToken, attempt: _Attempt, grant: Grant, presented: str) -> None:
    """Store the new tokens, unless the grant has moved on. An absent refresh token keeps the old one."""
    life = timedelta(seconds=grant.expires_in)
    values = {
        **outcomes.after_success(attempt.claimed_at, life, parts().config.refresh_lead),
        **seal(row.spotify_user_id, row.grant_id, grant.access_token, grant.refresh_token or presented),
        "generation": row.generation + 1,
    }
    if grant.scope is not None:
        values["scope"] = grant.scope
    only_copy = values["refresh_token"] if grant.refresh_token not in (None, presented) else None
    outcome = _finish(attempt, row, Outcome.REFRESHED, lambda _: values, only_copy=only_copy)
    log.info("token_refreshed", extra={"link": row.spotify_user_id, "outcome": outcome.value})
    breaker.note(outcome, attempt.claimed_at)


def _fail(row: AccessToken, attempt: _Attempt, error: SpotifyError) -> Reading:
    """Write down a failure and raise it, unless it is about the past: then take what there is now."""
    problem: GrantEnded | SpotifyUnavailable | SpotifyMisconfigured
    after: After
    if isinstance(error, InvalidGrant):
        outcome = Outcome.AGED if outcomes.is_aged(row, attempt.claimed_at) else Outcome.INVALID_GRANT
        problem, after = GrantEnded(), partial(outcomes.after_refusal, row)
    else:
        outcome = _FAILURES.get(type(error), Outcome.UNAVAILABLE)
        pause = outcomes.pause(row, error.retry_after)
        misconfigured = outcome is Outcome.MISCONFIGURED
        problem = SpotifyMisconfigured() if misconfigured else SpotifyUnavailable(retry_after=_seconds(pause))
        after = partial(outcomes.after_failure, row, pause)
        level = logging.ERROR if misconfigured else logging.WARNING
        log.log(level, "token_refresh_failed", extra={"link": row.spotify_user_id, "reason": str(error)})
    ended = _finish(attempt, row, outcome, after)
    # Only a 429 is about all grants. A 503 may be about one host.
    breaker.note(ended, attempt.claimed_at, error.retry_after if isinstance(error, RateLimited) else None)
    current, now = read(row.spotify_user_id)
    if ended is Outcome.SUPERSEDED and current.lasts(timedelta(0), now=now):
        return current, now
    if isinstance(problem, GrantEnded) and current.state == GrantState.ACTIVE:
        # The refusal is not believed, or there is a spare to try.
        raise SpotifyUnavailable(retry_after=breaker.held_for(now) or 1) from error
    if isinstance(problem, SpotifyUnavailable | SpotifyMisconfigured):
        problem.retry_after = breaker.held_for(now) or problem.retry_after
    raise problem from error


_FAILURES: dict[type[SpotifyError], Outcome] = {
    Misconfigured: Outcome.MISCONFIGURED,
    RateLimited: Outcome.RATE_LIMITED,
}


def _finish(
    attempt: _Attempt, row: AccessToken, outcome: Outcome, after: After, *, only_copy: object = None
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
        now = database.now(db)
        doubted = outcome is Outcome.INVALID_GRANT and breaker.doubts_revocations(db)
        values = outcomes.after_failure(row, _REFUSED_PROBE_WAITS, now) if doubted else after(now)
        # A success is good whoever holds the lease by now. A failure must not end another's.
        mine = () if outcome is Outcome.REFRESHED else (AccessToken.attempt_id == attempt.id,)
        ended = outcome if _update(db, row, values, *mine) else Outcome.SUPERSEDED
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
        return write_until(time.monotonic() + patience, unit)
    except sa.exc.SQLAlchemyError:
        lost = {"link": row.spotify_user_id, "outcome": outcome, "only_copy": only_copy is not None}
        log.error("token_answer_lost", extra=lost)
        raise


def _attempt_row(attempt_id: str) -> sa.Select[TokenRefresh]:
    """Locked, so that a COMMIT of ours that is slow rather than lost is waited for."""
    return sa.select(TokenRefresh).where(TokenRefresh.attempt_id == attempt_id).with_for_update()


def _update(db: Session, row: AccessToken, values: Values, *conditions: sa.ColumnElement[bool]) -> bool:
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


def _seconds(pause: timedelta) -> int:
    """For Retry-After, which has no fractions: rounded up."""
    return math.ceil(pause.total_seconds())
