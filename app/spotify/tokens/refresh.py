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
from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from app.errors import (
    BacklineError,
    SpotifyAppRefused,
    SpotifyMisconfigured,
    SpotifyNotConnected,
    SpotifyUnavailable,
)
from app.infra import database
from app.infra.database import database_now, reading
from app.infra.encryption import TokenCipher
from app.models import AccessToken, GrantState
from app.models.snapshots import Grant
from app.models.token_refresh import Outcome
from app.resilience.redis_lock import RedisLocks
from app.spotify.applications import pauses
from app.spotify.applications.lookup import Applications
from app.spotify.applications.pauses import ApplicationPauses
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import Application, ApplicationKind
from app.spotify.clients.errors import RateLimited, SpotifyError
from app.spotify.tokens import attempts, breaker, completions
from app.spotify.tokens.completions import Completion
from app.spotify.tokens.encryption import UNDECRYPTABLE_WAIT, decrypt_token
from app.spotify.tokens.grant_row import compare_and_swap
from app.spotify.tokens.results import Attempt, Result, Results

log = logging.getLogger(__name__)

# A grant's row, and the database's time when it was read.
GrantSnapshot = tuple[AccessToken, datetime]

# How long to wait for the lock before going on without it. A wait for a lost lock must not count as long
# (`accounts_bulkhead`), because it says nothing about Spotify.
LOCK_WAIT_SECONDS = 1.0
_POLL_SECONDS = 0.1


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


def version_of(row: Grant) -> tuple[str, int]:
    """Return the version of a grant: its id and its generation."""
    return row.grant_id, row.generation


def require_refreshable(row: AccessToken, now: datetime) -> None:
    """Require that the grant has not ended, and that its next attempt does not have to wait.

    Raises:
        GrantEnded: The grant has ended, or was rejected and the next confirmation is not due yet.
        SpotifyUnavailable: An attempt has failed, and the next one has to wait.
        SpotifyAppRefused: It has to wait because Spotify rejects the user's application.
    """
    is_backing_off = row.is_backing_off(now)
    if row.state == GrantState.REAUTHORIZATION_REQUIRED:
        raise GrantEnded
    if row.state == GrantState.SUSPECT and is_backing_off:
        raise GrantEnded
    if is_backing_off and row.not_before is not None:
        if row.client_id is not None:
            pauses.require_not_refused(row.spotify_user_id)
        raise SpotifyUnavailable(retry_after=_whole_seconds(row.not_before - now))


class Refresher:
    """Refreshes grants at Spotify and stores the result."""

    def __init__(
        self,
        accounts: SpotifyAccounts,
        bulkhead: AccountsBulkhead,
        applications: Applications,
        pauses: ApplicationPauses,
        locks: RedisLocks,
        cipher: TokenCipher,
        refresh_lead: timedelta,
    ) -> None:
        self._accounts = accounts
        self._bulkhead = bulkhead
        self._applications = applications
        self._pauses = pauses
        self._locks = locks
        self._cipher = cipher
        self._results = Results(cipher, refresh_lead)

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
            SpotifyAppRefused: Spotify rejects the user's own application.
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
                    application, refresh_token = self._applications.of_grant(row), self._refresh_token(row)
                    attempt = attempts.claim(row, application)
                    if attempt is not None:
                        return self.conclude(self.call(row, attempt, application, refresh_token))
                if time.monotonic() >= deadline:
                    raise RefreshInProgress
                time.sleep(_POLL_SECONDS)

    def _refresh_token(self, row: AccessToken) -> str:
        try:
            return decrypt_token(self._cipher, row, "refresh_token")
        except SpotifyUnavailable:
            database.run_in_transaction(
                lambda db: compare_and_swap(db, row, {"due_at": database.db_now(db) + UNDECRYPTABLE_WAIT}),
                is_idempotent=True,
            )
            raise

    def call(
        self, row: AccessToken, attempt: Attempt, application: Application, refresh_token: str
    ) -> Result:
        """Call Spotify under a claim. Returns the result to store.

        Raises:
            SpotifyUnavailable: The claim is too old. No call was made.
        """
        row.generation = attempt.generation
        if time.monotonic() > attempt.send_until:
            # This process was paused after the claim. The lease could end during the call.
            raise SpotifyUnavailable
        try:
            with self._bulkhead.calling(row.client_id):
                response = self._accounts.refresh(application, refresh_token)
        except SpotifyError as error:
            return self._results.of_error(row, attempt, error, refresh_token)
        return self._results.of_response(row, attempt, response, refresh_token)

    def conclude(self, result: Result) -> GrantSnapshot:
        """Store a result. Returns the grant's new state, or raises the error for the caller.

        If another caller has refreshed the grant in the meantime, that result is returned.

        Raises:
            GrantEnded, SpotifyUnavailable, SpotifyMisconfigured, SpotifyAppRefused: As `_error_for` decides.
            SpotifyNotConnected: The connection does not exist anymore.
        """
        completion = completions.finish(result)
        self.observe({result: completion})
        row = result.row
        if result.error is not None:
            return _superseding_or_raise(result, result.error, completion)
        if completion.written is None:
            return read(row.spotify_user_id)  # another caller's result, or a new consent
        for column, value in completion.written.items():
            setattr(row, column, value)
        return row, completion.at

    def observe(self, completions: Mapping[Result, Completion]) -> None:
        """Log the refreshes that have been stored, and let breaker and pauses count all outcomes."""
        observations = []
        for result, completion in completions.items():
            if result.error is None:
                log.info(
                    "token_refreshed",
                    extra={
                        "spotify_user_id": result.row.spotify_user_id,
                        "outcome": completion.outcome.value,
                    },
                )
            # Only a 429 is about all grants. A 503 may be about one host.
            retry_after = result.error.retry_after if isinstance(result.error, RateLimited) else None
            probed_at = result.attempt.claimed_at if result.attempt.is_probe else None
            observations.append(breaker.Observation(completion.outcome, result.kind, probed_at, retry_after))
            self._record_outcome(result.attempt, completion.outcome, retry_after)
        breaker.record_outcomes(observations)

    def _record_outcome(self, attempt: Attempt, outcome: Outcome, retry_after: int | None) -> None:
        """Pause or resume a user's own application. While Spotify is down for all, it is not to blame."""
        if attempt.application.id is None or (attempt.is_probe and outcome is Outcome.UNAVAILABLE):
            return
        self._pauses.record_outcome(
            attempt.application, outcome, is_probe=attempt.probes_application, retry_after=retry_after
        )


def _superseding_or_raise(result: Result, error: SpotifyError, completion: Completion) -> GrantSnapshot:
    """Return the result of another caller's refresh if there is one. Otherwise, raise the error."""
    state = None
    if result.is_rejection or completion.outcome is Outcome.SUPERSEDED:
        # Read again: the row is another caller's, or opening the breaker has undone the rejection.
        current, now = read(result.row.spotify_user_id)
        if completion.outcome is Outcome.SUPERSEDED and current.is_valid_for(timedelta(0), now=now):
            return current, now
        state = current.state
    raise _error_for(result, state) from error


def _error_for(result: Result, state: str | None) -> GrantEnded | BacklineError:
    """Map a failure to the error that the caller sees. `state` is the grant's state after a rejection."""
    if result.is_rejection and state != GrantState.ACTIVE:
        return GrantEnded()
    if result.outcome is Outcome.MISCONFIGURED and result.kind is ApplicationKind.OWN:
        return SpotifyAppRefused()
    breaker_wait = breaker.retry_after(result.kind)
    if result.is_rejection:
        # The rejection may be wrong, or there is a spare refresh token to try.
        return SpotifyUnavailable(retry_after=breaker_wait or 1)
    if result.outcome is Outcome.MISCONFIGURED:
        return SpotifyMisconfigured(retry_after=breaker_wait)
    return SpotifyUnavailable(retry_after=breaker_wait or _whole_seconds(result.backoff))


def _whole_seconds(duration: timedelta) -> int:
    """Round up, for `Retry-After`."""
    return math.ceil(duration.total_seconds())
