"""Provides valid access tokens to requests and to the scheduler.

A fresh token costs one read and no lock. A stale one is refreshed (`app.spotify.tokens.refresh`) in a
background thread, so a caller whose token is still valid does not have to wait, and the refresh continues if
the caller disconnects.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.orm import Session

from app.errors import (
    DEPENDENCY_DOWN,
    BacklineError,
    SpotifyAppRequired,
    SpotifyNotConnected,
    SpotifyUnavailable,
)
from app.infra import database
from app.infra.encryption import TokenCipher
from app.infra.row_versions import announce
from app.models import AccessToken, GrantState
from app.models.snapshots import Grant, TokenSnapshot
from app.resilience.single_flight import SingleFlight
from app.spotify.applications.lookup import Applications
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import ApplicationKind
from app.spotify.clients.consent import Consent
from app.spotify.tokens import refresh, transitions
from app.spotify.tokens.encryption import decrypt_token, encrypt_tokens
from app.spotify.tokens.refresh import GrantEnded, GrantSnapshot, Refresher, version_of

log = logging.getLogger(__name__)

# A request refreshes only a token that could expire on its way to Spotify; the scheduler refreshes earlier.
REQUEST_LEAD = timedelta(seconds=10)
# The Web Playback SDK caches its token. Given one that expires soon, it would ask again immediately.
PLAYBACK_LEAD = timedelta(minutes=5)
# A token with less time left would expire before it reaches Spotify.
MIN_TTL = timedelta(seconds=1)
# How long a caller waits for a refresh. Longer than a call to Spotify can take.
WAIT_SECONDS = 12.0
# If Spotify rejects a token this soon after issuing it, the same token is tried once more.
_JUST_REFRESHED = timedelta(minutes=1)


@dataclass(frozen=True)
class DecryptedToken:
    """A decrypted access token. Use it immediately and do not store it."""

    access_token: str = field(repr=False)
    scope: str
    expires_at: datetime
    expires_in: int  # seconds
    version: tuple[str, int]  # grant id and generation


class TokenService:
    """Reads, refreshes, and stores the tokens of connections."""

    def __init__(
        self,
        refresher: Refresher,
        refreshes: Mapping[ApplicationKind, SingleFlight[GrantSnapshot]],
        bulkhead: AccountsBulkhead,
        applications: Applications,
        cipher: TokenCipher,
        refresh_lead: timedelta,
    ) -> None:
        self.refresher = refresher
        self._refreshes = refreshes
        self._bulkhead = bulkhead
        self._applications = applications
        self._cipher = cipher
        self._refresh_lead = refresh_lead

    def access_token_for(
        self,
        spotify_user_id: int,
        lead: timedelta = REQUEST_LEAD,
        *,
        wait_if_valid: float = 0,
        wait_seconds: float = WAIT_SECONDS,
        grant_id: str | None = None,
        known: TokenSnapshot | None = None,
    ) -> DecryptedToken:
        """Return an access token of a connection, refreshed if it expires within `lead`.

        A caller whose token is still valid waits up to `wait_if_valid` seconds for a newer one; otherwise
        up to `wait_seconds`. With `grant_id`, only a token of that grant is returned. `known` is what the
        caller has just read: if it does not have to be refreshed, nothing else is read.

        Raises:
            GrantEnded: Spotify has ended the grant.
            SpotifyNotConnected: The connection does not exist, or has another grant than `grant_id`.
            SpotifyAppRequired: It was made with the application of this server, which has none anymore.
            SpotifyUnavailable: The refresh is not done in time, is backing off, or is stopped by the breaker.
            SpotifyMisconfigured: Spotify rejects this server's client id or secret.
        """
        if known is not None and known.is_valid_for(lead, now=known.read_time.now()):
            self._require_usable(known)
            token = self._decrypt_known(known)
            require_grant(token, grant_id)
            return token
        row, now = refresh.read(spotify_user_id)
        self._require_usable(row)
        if row.is_valid_for(lead, now=now):
            token = self._decrypt(row, now)
        elif row.is_valid_for(MIN_TTL, now=now):
            token = self._newer_or_same(row, now, lead, wait_if_valid)
        else:
            refresh.require_refreshable(row, now)
            token = self._decrypt(*self._refresh_and_wait(row, wait_seconds, lead=lead))
        require_grant(token, grant_id)
        return token

    def replace_rejected(
        self, rejected: DecryptedToken, spotify_user_id: int, *, wait_seconds: float = WAIT_SECONDS
    ) -> DecryptedToken:
        """Return a token to use instead of one that Spotify has rejected before it expired.

        Callers that hold the same rejected token share one refresh. A token that was issued moments ago is
        returned as it is: if Spotify rejects it for another reason, refreshing again would not help.

        Raises:
            GrantEnded: Spotify has ended the grant.
            SpotifyNotConnected: The connection does not exist.
            SpotifyUnavailable: The refresh is not done in time, is backing off, or is stopped by the breaker.
            SpotifyMisconfigured: Spotify rejects this server's client id or secret.
        """
        row, now = refresh.read(spotify_user_id)
        if version_of(row) != rejected.version and row.is_valid_for(MIN_TTL, now=now):
            return self._decrypt(row, now)
        if row.refreshed_at is not None and abs(now - row.refreshed_at) < _JUST_REFRESHED:
            return self._decrypt(row, now)
        deadline = time.monotonic() + wait_seconds
        refresh.require_refreshable(row, now)
        renewed, now = self._refresh_and_wait(row, wait_seconds, force=True)
        if version_of(renewed) == version_of(row):  # the caller that we joined did not force a refresh
            remaining = max(0, deadline - time.monotonic())
            renewed, now = self._refresh_and_wait(row, remaining, force=True)
        return self._decrypt(renewed, now)

    def store_grant(self, db: Session, spotify_user_id: int, consent: Consent) -> None:
        """Store the grant of a new consent. Refreshes of the previous grant can then write nothing.

        The token's lifetime is counted from when the code was sent to Spotify.
        """
        tokens = consent.tokens
        if tokens.refresh_token is None:
            raise ValueError("A grant without a refresh token cannot be stored.")
        authorized_at = database.db_now(db) - timedelta(seconds=time.monotonic() - consent.requested_at)
        same_connection = AccessToken.spotify_user_id == spotify_user_id
        row = db.scalar(sa.select(AccessToken).where(same_connection).with_for_update())
        if row is None:
            row = AccessToken(spotify_user_id=spotify_user_id)
            db.add(row)
        lifetime = timedelta(seconds=tokens.expires_in)
        row.grant_id = uuid.uuid4().hex
        row.generation = 0
        row.client_id = consent.application.own_client_id
        row.state = GrantState.ACTIVE
        row.scope = tokens.scope or ""
        row.authorized_at = authorized_at
        row.expires_at = authorized_at + lifetime
        row.due_at = transitions.next_refresh_at(row.expires_at, lifetime, self._refresh_lead)
        row.attempt_id = row.lease_until = row.not_before = row.refreshed_at = None
        row.ended_at = row.reminded_days = row.spare_refresh_token = row.undated_grant_id = None
        row.failures = 0
        columns = encrypt_tokens(self._cipher, row, tokens.access_token, tokens.refresh_token)
        for column, value in columns.items():
            setattr(row, column, value)
        announce(db, connections=[spotify_user_id])
        db.flush()

    def close(self) -> None:
        """Wait for the refreshes that are running, and accept no more."""
        for refreshes in self._refreshes.values():
            refreshes.close()

    def _require_usable(self, grant: Grant) -> None:
        if not self._applications.can_use(grant):
            raise SpotifyAppRequired

    def _newer_or_same(
        self, row: AccessToken, now: datetime, lead: timedelta, wait_seconds: float
    ) -> DecryptedToken:
        """Refresh a token that is still valid. Returns the old one if no new one arrives in time."""
        if not (row.can_refresh(now) or (wait_seconds and row.is_leased(now))):
            return self._decrypt(row, now)
        refreshing = self._start_refresh(row, lead=lead)
        if not wait_seconds:
            return self._decrypt(row, now)
        try:
            with self._bulkhead.waiting(row.client_id) as waiter:
                return self._decrypt(*waiter.result(refreshing, wait_seconds))
        except (TimeoutError, BacklineError, GrantEnded, *DEPENDENCY_DOWN):
            return self._decrypt(row, now)

    def _refresh_and_wait(
        self,
        row: AccessToken,
        wait_seconds: float,
        *,
        lead: timedelta = timedelta(0),
        force: bool = False,
    ) -> GrantSnapshot:
        with self._bulkhead.waiting(row.client_id) as waiter:
            try:
                return waiter.result(self._start_refresh(row, lead=lead, force=force), wait_seconds)
            except TimeoutError:
                raise SpotifyUnavailable(retry_after=1) from None

    def _start_refresh(
        self, row: AccessToken, *, lead: timedelta = timedelta(0), force: bool = False
    ) -> "Future[GrantSnapshot]":
        """Start a refresh in the background, or join this process's running refresh of the same grant."""
        app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001

        def run() -> GrantSnapshot:
            with app.app_context():
                try:
                    return self.refresher.refresh(row, lead=lead, force=force, wait_seconds=WAIT_SECONDS)
                except (BacklineError, GrantEnded, *DEPENDENCY_DOWN):
                    raise
                except Exception:
                    # Log it here, because there may be no caller left to do it.
                    log.exception("token_refresh_crashed", extra={"spotify_user_id": row.spotify_user_id})
                    raise

        # Refreshes with users' applications that hang must not keep the deployment's from starting.
        refreshes = self._refreshes[ApplicationKind.of(row.client_id)]
        return refreshes.start((row.spotify_user_id, row.grant_id), run)

    def _decrypt_known(self, known: TokenSnapshot) -> DecryptedToken:
        """Decrypt the token of a snapshot, once."""
        decrypted: str | None = known.derived.get("access_token")
        if decrypted is None:
            decrypted = known.derived["access_token"] = decrypt_token(self._cipher, known, "access_token")
        return _decrypted_token(decrypted, known, known.read_time.now())

    def _decrypt(self, row: AccessToken, now: datetime) -> DecryptedToken:
        return _decrypted_token(decrypt_token(self._cipher, row, "access_token"), row, now)


def _decrypted_token(access_token: str, row: Grant, now: datetime) -> DecryptedToken:
    return DecryptedToken(
        access_token,
        row.scope,
        row.expires_at,
        expires_in=int((row.expires_at - now).total_seconds()),
        version=version_of(row),
    )


def require_grant(token: DecryptedToken, grant_id: str | None) -> None:
    """Require that a token is of this grant, or of any grant if it is None.

    The grant may have been replaced since the caller looked up the connection.

    Raises:
        SpotifyNotConnected: The token is of another grant.
    """
    if grant_id is not None and token.version[0] != grant_id:
        raise SpotifyNotConnected
