"""Refreshes a grant exactly once, no matter how many callers ask.

1. Claim: an UPDATE that only one caller can win, on this generation and if no lease is running.
2. Call: Spotify, with no transaction open and a deadline well within the lease.
3. Commit: a compare-and-swap on (`grant_id`, `generation`), together with the attempt's outcome.

A lock in Redis comes first and saves the other callers a wasted attempt. Correctness does not depend on it.
`docs/custody.md` explains why this is safe, and what is promised when something breaks.
"""

import logging
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from app.errors import SpotifyMisconfigured, SpotifyNotConnected, SpotifyUnavailable
from app.infra import database
from app.infra.database import database_now, reading
from app.infra.encryption import TokenCipher
from app.models import AccessToken, GrantState
from app.models.snapshots import TokenSnapshot
from app.models.token_refresh import Outcome
from app.resilience.redis_lock import RedisLocks
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.errors import InvalidGrant, Misconfigured, RateLimited, SpotifyError
from app.spotify.clients.token_response import TokenResponse
from app.spotify.tokens import attempts, breaker, transitions
from app.spotify.tokens.attempts import Attempt
from app.spotify.tokens.encryption import decrypt_token, encrypt_refresh_token, encrypt_tokens
from app.spotify.tokens.transitions import Transition, Values

log = logging.getLogger(__name__)

# A grant's row, and the database's time when it was read.
GrantSnapshot = tuple[AccessToken, datetime]

# How long to wait for the lock before going on without it. Less than the wait that makes the accounts service
# count as slow (`accounts_bulkhead`), because a lost lock says nothing about Spotify.
LOCK_WAIT_SECONDS = 1.0
_POLL_SECONDS = 0.1
# How long the scheduler skips a token that it cannot decrypt. Otherwise, it would log that twice a minute.
_UNDECRYPTABLE_WAIT = timedelta(hours=1)


class GrantEnded(Exception):
    """Spotify has ended the grant. The person has to consent again."""


class RefreshInProgress(SpotifyUnavailable):
    """Another caller is still refreshing the grant."""


def read(spotify_user_id: int) -> GrantSnapshot:
    """Read the last committed state of a connection's grant, in a separate transaction.

    Raises:
        SpotifyNotConnected: The connection does not exist.
    """
    with reading() as db:
        found = db.execute(
            sa.select(AccessToken, database_now()).where(AccessToken.spotify_user_id == spotify_user_id)
        ).one_or_none()
    if found is None:
        raise SpotifyNotConnected
    return found[0], found[1]


def version_of(row: AccessToken | TokenSnapshot) -> tuple[str, int]:
    """Return the version of a grant: its id and its generation."""
    return row.grant_id, row.generation


def require_refreshable(row: AccessToken, now: datetime) -> None:
    """Require that the grant has not ended, and that its next attempt does not have to wait.

    Raises:
        GrantEnded: The grant has ended, or was rejected and the next confirmation is not due yet.
        SpotifyUnavailable: An attempt has failed, and the next one has to wait.
    """
    is_backing_off = row.is_backing_off(now)
    if row.state == GrantState.REAUTHORIZATION_REQUIRED:
        raise GrantEnded
    if row.state == GrantState.SUSPECT and is_backing_off:
        raise GrantEnded
    if is_backing_off and row.not_before is not None:
        raise SpotifyUnavailable(retry_after=_whole_seconds(row.not_before - now))


class Refresher:
    """Refreshes grants at Spotify and stores the result."""

    def __init__(
        self,
        accounts: SpotifyAccounts,
        bulkhead: AccountsBulkhead,
        locks: RedisLocks,
        cipher: TokenCipher,
        refresh_lead: timedelta,
    ) -> None:
        self._accounts = accounts
        self._bulkhead = bulkhead
        self._locks = locks
        self._cipher = cipher
        self._refresh_lead = refresh_lead

    def refresh(
        self,
        row: AccessToken,
        *,
        lead: timedelta = timedelta(0),
        force: bool = False,
        wait_seconds: float,
    ) -> GrantSnapshot:
        """Refresh a grant, or wait for another caller's refresh. Returns the grant's new state.

        A token that does not expire within `lead` is left alone, unless `force` is set. If another caller
        has refreshed the grant since `row` was read, its token is returned no matter when it expires.

        Raises:
            GrantEnded: Spotify has ended the grant.
            SpotifyNotConnected: The connection does not exist.
            SpotifyUnavailable: Spotify returned no token, the grant is backing off, or the breaker is open.
            RefreshInProgress: Another caller's refresh takes longer than `wait_seconds`.
            SpotifyMisconfigured: Spotify rejects this server's client id or secret.
        """
        spotify_user_id, seen = row.spotify_user_id, version_of(row)
        deadline = time.monotonic() + wait_seconds
        lock_name, lock_wait = f"connection:{spotify_user_id}", min(wait_seconds, LOCK_WAIT_SECONDS)
        # The compare-and-swap on the generation makes writes safe, with the lock or without it.
        with self._locks.hold(lock_name, timeout=lock_wait):
            while True:
                row, now = read(spotify_user_id)
                superseded = version_of(row) != seen
                if superseded and row.is_valid_for(timedelta(0), now=now):
                    return row, now
                if not superseded and not force and row.is_valid_for(lead, now=now):
                    return row, now
                require_refreshable(row, now)
                if not row.is_leased(now):
                    refresh_token = self._refresh_token(row)
                    attempt = attempts.claim(row)
                    if attempt is not None:
                        row.generation = attempt.generation
                        return self._call(row, attempt, refresh_token)
                if time.monotonic() >= deadline:
                    raise RefreshInProgress
                time.sleep(_POLL_SECONDS)

    def _refresh_token(self, row: AccessToken) -> str:
        try:
            return decrypt_token(self._cipher, row, "refresh_token")
        except SpotifyUnavailable:
            with database.writing() as db:
                attempts.update(db, row, {"due_at": database.db_now(db) + _UNDECRYPTABLE_WAIT})
            raise

    def _call(self, row: AccessToken, attempt: Attempt, refresh_token: str) -> GrantSnapshot:
        """Call Spotify under a claim, and store the result."""
        if time.monotonic() > attempt.send_until:
            # This process was paused after the claim. The lease could end during the call.
            raise SpotifyUnavailable
        try:
            with self._bulkhead.calling():
                response = self._accounts.refresh(refresh_token)
        except SpotifyError as error:
            return self._record_failure(row, attempt, error, refresh_token)
        return self._commit(row, attempt, response, refresh_token)

    def _commit(
        self, row: AccessToken, attempt: Attempt, response: TokenResponse, presented: str
    ) -> GrantSnapshot:
        """Store the new tokens, unless the attempt is superseded."""
        refresh_token = response.refresh_token or presented
        values = {
            **transitions.after_success(
                attempt.claimed_at, timedelta(seconds=response.expires_in), self._refresh_lead
            ),
            **encrypt_tokens(
                self._cipher, row.spotify_user_id, row.grant_id, response.access_token, refresh_token
            ),
            "generation": row.generation + 1,
        }
        if response.scope is not None:
            values["scope"] = response.scope
        orphan_token = values["refresh_token"] if refresh_token != presented else None
        completion = attempts.finish(
            attempt, row, Outcome.REFRESHED, lambda _: values, orphan_token=orphan_token
        )
        log.info(
            "token_refreshed",
            extra={"spotify_user_id": row.spotify_user_id, "outcome": completion.outcome.value},
        )
        breaker.record_outcome(completion.outcome, attempt.claimed_at)
        if completion.written is None:
            return read(row.spotify_user_id)  # another caller's result, or a new consent
        for column, value in completion.written.items():
            setattr(row, column, value)
        return row, completion.at

    def _record_failure(
        self, row: AccessToken, attempt: Attempt, error: SpotifyError, presented: str
    ) -> GrantSnapshot:
        """Record a failure, and raise the error for the caller.

        If another caller has refreshed the grant in the meantime, returns that result instead.

        Raises:
            GrantEnded, SpotifyUnavailable, SpotifyMisconfigured: As `_error_for` decides.
            SpotifyNotConnected: The connection does not exist anymore.
        """
        salvaged = self._salvaged(row, error, presented)
        failure = _classify(row, attempt, error, salvaged)
        completion = attempts.finish(
            attempt, row, failure.outcome, failure.transition, orphan_token=salvaged.get("refresh_token")
        )
        # Only a 429 is about all grants. A 503 may be about one host.
        retry_after = error.retry_after if isinstance(error, RateLimited) else None
        breaker.record_outcome(completion.outcome, attempt.claimed_at, retry_after)
        state = None
        if failure.is_rejection or completion.outcome is Outcome.SUPERSEDED:
            # Read again: the row is another caller's, or opening the breaker has undone the rejection.
            current, now = read(row.spotify_user_id)
            if completion.outcome is Outcome.SUPERSEDED and current.is_valid_for(timedelta(0), now=now):
                return current, now
            state = current.state
        raise _error_for(failure, state) from error

    def _salvaged(self, row: AccessToken, error: SpotifyError, presented: str) -> Values:
        """Return the columns for a new refresh token that came with a failure.

        It replaces the one that was presented. A server that accepts each token only once may treat a second
        use of the old one as theft, and end the grant. The old one is kept as the spare.
        """
        if error.refresh_token in (None, presented):
            return {}
        log.warning("refresh_token_salvaged", extra={"spotify_user_id": row.spotify_user_id})
        return encrypt_refresh_token(self._cipher, row, error.refresh_token, spare=presented)


@dataclass(frozen=True)
class _Failure:
    """A failed call: its outcome for the history, and its effect on the grant."""

    outcome: Outcome
    transition: Transition
    backoff: timedelta = timedelta(0)

    @property
    def is_rejection(self) -> bool:
        """Whether Spotify rejected the grant itself."""
        return self.outcome in (Outcome.INVALID_GRANT, Outcome.AGED)


def _classify(row: AccessToken, attempt: Attempt, error: SpotifyError, salvaged: Values) -> _Failure:
    # If a new refresh token came with the rejection, that token is not rejected, and neither is the grant.
    if isinstance(error, InvalidGrant) and not salvaged:
        outcome = Outcome.AGED if transitions.is_aged(row, attempt.claimed_at) else Outcome.INVALID_GRANT
        return _Failure(outcome, partial(transitions.after_rejection, row))
    outcome = Outcome.UNAVAILABLE
    if isinstance(error, Misconfigured):
        outcome = Outcome.MISCONFIGURED
    elif isinstance(error, RateLimited):
        outcome = Outcome.RATE_LIMITED
    level = logging.ERROR if outcome is Outcome.MISCONFIGURED else logging.WARNING
    log.log(
        level, "token_refresh_failed", extra={"spotify_user_id": row.spotify_user_id, "reason": str(error)}
    )
    backoff = transitions.backoff(row, error.retry_after)
    return _Failure(outcome, partial(transitions.after_failure, row, backoff, salvaged=salvaged), backoff)


def _error_for(
    failure: _Failure, state: str | None
) -> GrantEnded | SpotifyUnavailable | SpotifyMisconfigured:
    """Map a failure to the error that the caller sees. `state` is the grant's state after a rejection."""
    if failure.is_rejection and state != GrantState.ACTIVE:
        return GrantEnded()
    breaker_wait = breaker.retry_after()
    if failure.is_rejection:
        # The rejection may be wrong, or there is a spare refresh token to try.
        return SpotifyUnavailable(retry_after=breaker_wait or 1)
    if failure.outcome is Outcome.MISCONFIGURED:
        return SpotifyMisconfigured(retry_after=breaker_wait)
    return SpotifyUnavailable(retry_after=breaker_wait or _whole_seconds(failure.backoff))


def _whole_seconds(duration: timedelta) -> int:
    """Round up, for `Retry-After`."""
    return math.ceil(duration.total_seconds())
