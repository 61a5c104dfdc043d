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
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from app.errors import SpotifyMisconfigured, SpotifyNotConnected, SpotifyUnavailable
from app.infra import database
from app.infra.database import database_now, reading
from app.models import AccessToken, GrantState
from app.models.token_refresh import Outcome
from app.services import services
from app.spotify.clients.accounts import InvalidGrant, Misconfigured, RateLimited, SpotifyError, TokenResponse
from app.spotify.tokens import attempts, breaker, transitions
from app.spotify.tokens.attempts import Attempt
from app.spotify.tokens.encryption import decrypt_token, encrypt_refresh_token, encrypt_tokens
from app.spotify.tokens.transitions import Transition, Values

log = logging.getLogger(__name__)

# A grant's row, and what the database's clock said when it was read.
GrantSnapshot = tuple[AccessToken, datetime]

# After so long without the lock a caller asks the database itself. Less than the wait that makes the accounts
# service count as slow (`accounts_bulkhead`): a lock that is lost says nothing about Spotify.
LOCK_PATIENCE_SECONDS = 1.0
_UNREADABLE_WAITS = timedelta(hours=1)


class GrantEnded(Exception):
    """Spotify no longer honours the grant; the person has to consent again."""


class RefreshInProgress(SpotifyUnavailable):
    """Somebody else is refreshing it, and takes longer than was waited for."""


def read(link_id: int) -> GrantSnapshot:
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


def refresh(row: AccessToken, lead: timedelta | None, *, wait_seconds: float) -> GrantSnapshot:
    """Refresh, or share the result of whoever is refreshing. Returns the grant as it stands then.

    A token that outlives `lead` need not be refreshed; without a lead it must be, however long it lives.
    One that somebody else has refreshed since `row` was read is good if it lives at all.

    Raises:
        GrantEnded, SpotifyNotConnected, SpotifyUnavailable, SpotifyMisconfigured
    """
    link_id, seen = row.spotify_user_id, (row.grant_id, row.generation)
    deadline = time.monotonic() + wait_seconds
    with services().locks.hold(link_id, patience=min(wait_seconds, LOCK_PATIENCE_SECONDS)):
        while True:
            row, now = read(link_id)
            overtaken = (row.grant_id, row.generation) != seen
            needed = timedelta(0) if overtaken else lead
            if needed is not None and row.lasts(needed, now=now):
                return row, now
            require_refreshable(row, now)
            if not row.is_leased(now):
                refresh_token = _refresh_token(row)
                attempt = attempts.claim(row)
                if attempt is not None:
                    row.generation = attempt.generation
                    return _call(row, attempt, refresh_token)
            if time.monotonic() >= deadline:
                raise RefreshInProgress
            time.sleep(0.1)


def require_refreshable(row: AccessToken, now: datetime) -> None:
    """Share an earlier answer while it counts: a refusal, or a failure just now.

    Raises:
        GrantEnded, SpotifyUnavailable
    """
    waiting = row.is_paused(now)
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
        return decrypt_token(row, "refresh_token")
    except SpotifyUnavailable:
        with database.writing() as db:  # or the scheduler would ask, and report, every half minute
            attempts.update(db, row, {"due_at": database.db_now(db) + _UNREADABLE_WAITS})
        raise


def _call(row: AccessToken, attempt: Attempt, refresh_token: str) -> GrantSnapshot:
    """Call Spotify under a claim, and write down whatever it says."""
    if time.monotonic() > attempt.send_until:
        # Paused since the claim. The lease may end during the call; the next owner is left to make it.
        raise SpotifyUnavailable
    try:
        with services().accounts_bulkhead.calling():
            grant = services().accounts.refresh(refresh_token)
    except SpotifyError as error:
        return _fail(row, attempt, error, refresh_token)
    _commit(row, attempt, grant, refresh_token)
    return read(row.spotify_user_id)


def _commit(row: AccessToken, attempt: Attempt, grant: TokenResponse, presented: str) -> None:
    """Store the new tokens, unless the grant has moved on. An absent refresh token keeps the old one."""
    life = timedelta(seconds=grant.expires_in)
    values = {
        **transitions.after_success(attempt.claimed_at, life, services().config.refresh_lead),
        **encrypt_tokens(
            row.spotify_user_id, row.grant_id, grant.access_token, grant.refresh_token or presented
        ),
        "generation": row.generation + 1,
    }
    if grant.scope is not None:
        values["scope"] = grant.scope
    only_copy = values["refresh_token"] if grant.refresh_token not in (None, presented) else None
    outcome = attempts.finish(attempt, row, Outcome.REFRESHED, lambda _: values, only_copy=only_copy)
    log.info("token_refreshed", extra={"link": row.spotify_user_id, "outcome": outcome.value})
    breaker.record_outcome(outcome, attempt.claimed_at)


def _fail(row: AccessToken, attempt: Attempt, error: SpotifyError, presented: str) -> GrantSnapshot:
    """Write down a failure and raise it, unless it is about the past: then take what there is now."""
    problem: GrantEnded | SpotifyUnavailable | SpotifyMisconfigured
    after: Transition
    kept = _kept_of(row, error, presented)
    if isinstance(error, InvalidGrant) and not kept:
        outcome = Outcome.AGED if transitions.is_aged(row, attempt.claimed_at) else Outcome.INVALID_GRANT
        problem, after = GrantEnded(), partial(transitions.after_refusal, row)
    else:
        outcome = _FAILURES.get(type(error), Outcome.UNAVAILABLE)
        pause = transitions.pause(row, error.retry_after)
        misconfigured = outcome is Outcome.MISCONFIGURED
        problem = SpotifyMisconfigured() if misconfigured else SpotifyUnavailable(retry_after=_seconds(pause))
        after = partial(transitions.after_failure, row, pause, kept=kept)
        level = logging.ERROR if misconfigured else logging.WARNING
        log.log(level, "token_refresh_failed", extra={"link": row.spotify_user_id, "reason": str(error)})
    ended = attempts.finish(attempt, row, outcome, after, only_copy=kept.get("refresh_token"))
    # Only a 429 is about all grants. A 503 may be about one host.
    breaker.record_outcome(
        ended, attempt.claimed_at, error.retry_after if isinstance(error, RateLimited) else None
    )
    current, now = read(row.spotify_user_id)
    if ended is Outcome.SUPERSEDED and current.lasts(timedelta(0), now=now):
        return current, now
    if isinstance(problem, GrantEnded) and current.state == GrantState.ACTIVE:
        # The refusal is not believed, or there is a spare to try.
        raise SpotifyUnavailable(retry_after=breaker.retry_after(now) or 1) from error
    if isinstance(problem, SpotifyUnavailable | SpotifyMisconfigured):
        problem.retry_after = breaker.retry_after(now) or problem.retry_after
    raise problem from error


def _kept_of(row: AccessToken, error: SpotifyError, presented: str) -> Values:
    """The columns for a new refresh token that came with a failure.

    It replaces the one that was presented: a server that uses tokens once may take a second use of
    the old one for theft, and end the grant. The old one stays as the spare, should the new one be no good.
    """
    if error.refresh_token in (None, presented):
        return {}
    log.warning("refresh_token_salvaged", extra={"link": row.spotify_user_id})
    return encrypt_refresh_token(row, error.refresh_token, spare=presented)


_FAILURES: dict[type[SpotifyError], Outcome] = {
    Misconfigured: Outcome.MISCONFIGURED,
    RateLimited: Outcome.RATE_LIMITED,
}


def _seconds(pause: timedelta) -> int:
    """For Retry-After, which has no fractions: rounded up."""
    return math.ceil(pause.total_seconds())
