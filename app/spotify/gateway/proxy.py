"""Forwards calls to the Web API on a person's behalf.

Callers that make the same read over one connection share a response (`ResponseCache`). A write is forwarded,
and drops what the connection has read. Both use the connection's access token, which is replaced once if
Spotify rejects it. `docs/gateway.md` describes all of it for users of the API.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import redis
from werkzeug.datastructures import ResponseCacheControl
from werkzeug.http import parse_cache_control_header

from app.errors import InsufficientScope, SpotifyOutcomeUnknown, SpotifyRateLimited, SpotifyUnavailable
from app.infra.http_client import HttpResponse
from app.models.snapshots import ConnectionSnapshot
from app.resilience.bulkhead import Admission, Bulkhead, BulkheadFull
from app.spotify.clients.call import MIN_SECONDS, Call
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.errors import RateLimited, SpotifyTransportError
from app.spotify.clients.scopes import lacks_scope, missing_scopes
from app.spotify.clients.web_api import CALL_SECONDS, SpotifyWebApi
from app.spotify.gateway.cache import FAILED, MAX_TTL_SECONDS, TOO_LARGE, Lookup, ResponseCache, State
from app.spotify.gateway.prepared_call import PreparedCall, bulkhead_caller
from app.spotify.tokens.service import WAIT_SECONDS, TokenService, require_grant

# For everything: a token, the call, another token, and the call again. nginx waits for 20 s.
TOTAL_SECONDS = 15.0
# Waiting for a token leaves at least this much time for the call.
_CALL_RESERVE_SECONDS = 3.0


class GatewayBusy(SpotifyUnavailable):
    """Too many requests are waiting for Spotify."""

    detail = "Too many calls are waiting for Spotify. Try again in a moment."
    retry_after = 1


@dataclass(frozen=True)
class GatewayResponse:
    """A response of Spotify, whether this request fetched it, and its age in seconds."""

    spotify: HttpResponse
    cache: Literal["hit", "shared", "miss"] = "miss"
    age: int = 0


@dataclass(frozen=True)
class _Forward:
    """A call to forward over a connection. With `grant_id`, only a token of that grant may be used."""

    connection: ConnectionSnapshot
    prepared: PreparedCall
    grant_id: str | None
    deadline: float  # time.monotonic

    @property
    def call(self) -> Call:
        """The call."""
        return self.prepared.call

    @property
    def spotify_user_id(self) -> int:
        """The id of the connection."""
        return self.connection.id

    @property
    def latest_start(self) -> float:
        """The last moment at which the call can be started."""
        return self.deadline - MIN_SECONDS

    def remaining(self, reserve: float = 0) -> float:
        """Return the seconds that are left without a reserve, but at least one."""
        return max(1.0, self.deadline - time.monotonic() - reserve)


class Gateway:
    """The Web API on behalf of connections."""

    def __init__(
        self,
        client: redis.Redis,
        tokens: TokenService,
        web_api: SpotifyWebApi,
        limits: ClientLimitsRegistry,
        cache: ResponseCache,
        bulkhead: Bulkhead,
        poll_ttl: float,
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._web_api = web_api
        self._limits = limits
        self._cache = cache
        self._bulkhead = bulkhead
        self._poll_ttl = poll_ttl

    def prepare(self, call: Call) -> PreparedCall:
        """Prepare a call. Its commands may be sent together with others, before it is forwarded."""
        return PreparedCall(call, self._client, self._cache, self._limits, self._bulkhead)

    def forward(
        self, prepared: PreparedCall, connection: ConnectionSnapshot, *, grant_id: str | None = None
    ) -> GatewayResponse:
        """Make a call over a connection, in the block of `prepared`.

        With `grant_id`, only a token of that grant is used. Reads are shared only within one grant.

        Raises:
            GrantEnded: Spotify has ended the grant.
            SpotifyNotConnected: The connection is gone, or has another grant.
            InsufficientScope: The grant lacks a scope that the call needs.
            SpotifyRateLimited: Spotify rejects such calls for now, or the budget is used up.
            SpotifyUnavailable: Spotify did not respond usably, or too many requests wait for it. A write has
                had no effect.
            SpotifyOutcomeUnknown: A write was sent, but got no usable response.
            SpotifyMisconfigured: Spotify rejects this server's client id or secret.
        """
        forward = _Forward(connection, prepared, grant_id, time.monotonic() + TOTAL_SECONDS)
        prepared.complete(connection)
        try:
            response = self._read(forward) if prepared.call.is_read else self._write(forward)
        except BulkheadFull:
            raise GatewayBusy from None
        _require_forwardable(response.spotify, prepared.call, connection)
        return response

    def _read(self, forward: _Forward) -> GatewayResponse:
        found = forward.prepared.lookup
        if found.state is State.HIT:
            return _cached(found, "hit")
        try:
            with self._bulkhead.admit(bulkhead_caller(forward.connection)) as admission:
                return self._fetch_or_wait(found, admission, forward)
        except BulkheadFull:
            if found.entry is None:
                raise
            # It is still fresh. Another caller will fetch the next one.
            return _cached(found, "hit")

    def _fetch_or_wait(self, found: Lookup, admission: Admission, forward: _Forward) -> GatewayResponse:
        """Fetch the response, or wait for the caller that is fetching it.

        Raises:
            BulkheadFull: There is no slot, and waiting for one takes too long or would be pointless.
        """
        prepared, since, pauses = forward.prepared, found.now, _pauses()
        # There is a response that is due to be replaced, but still fresh.
        latest_slot = forward.latest_start if found.entry is None else 0.0
        while found.state is not State.HIT:
            if time.monotonic() >= forward.latest_start:
                raise SpotifyUnavailable(retry_after=1)
            if found.state is State.IN_PROGRESS:
                self._bulkhead.pause(admission, next(pauses))
                found = self._cache.get(prepared.read, since)
            elif found.state is State.LEADING and self._bulkhead.try_acquire(admission):
                return self._fetch_as_leader(found.now, forward)
            else:
                prepared.release()
                self._bulkhead.acquire(admission, until=latest_slot)
                prepared.repeat(forward.spotify_user_id)
                found = prepared.lookup
        if found.entry is not None and found.entry.status == TOO_LARGE:
            self._bulkhead.acquire(admission, until=forward.latest_start)
            return GatewayResponse(self._fetch(forward))
        return _cached(found, "shared")

    def _fetch_as_leader(self, started: int, forward: _Forward) -> GatewayResponse:
        """Fetch a response, and share it with the callers that wait."""
        prepared, read = forward.prepared, forward.prepared.read
        prepared.take_lead()
        with self._cache.renewed_lease(read):
            try:
                response = self._fetch(forward)
            except SpotifyUnavailable as error:
                further = prepared.take_uncounted()
                self._cache.store_failure(read, error.retry_after, started=started, further=further)
                raise
            except BaseException:
                # The error may concern only this caller, so let the next one try.
                self._cache.release(read, prepared.take_uncounted())
                raise
        ttl = self._ttl(forward.call, response)
        self._cache.store(read, response, started=started, ttl=ttl, further=prepared.take_uncounted())
        return GatewayResponse(response)

    def _write(self, forward: _Forward) -> GatewayResponse:
        with self._bulkhead.admit(bulkhead_caller(forward.connection)) as admission:
            self._bulkhead.acquire(admission, until=forward.latest_start)
            # Responses are dropped before the call too: this process may die during it, or lose Redis.
            if not forward.prepared.is_current:
                forward.prepared.repeat(forward.spotify_user_id)
            try:
                return GatewayResponse(self._fetch(forward))
            finally:
                # Even without a response, the call may have had an effect.
                self._cache.drop(forward.spotify_user_id, forward.prepared.take_uncounted())

    def _fetch(self, forward: _Forward) -> HttpResponse:
        """Call Spotify. After any 401 that is about the token, replace the token and call once more."""
        try:
            token = self._tokens.access_token_for(
                forward.spotify_user_id,
                wait_seconds=min(WAIT_SECONDS, forward.remaining(_CALL_RESERVE_SECONDS)),
                grant_id=forward.grant_id,
                # After a wait, the connection may be gone.
                known=forward.connection.token if forward.prepared.is_current else None,
            )
            response = self._send(forward, token.access_token)
            if response.status != 401 or lacks_scope(response) or forward.remaining() <= MIN_SECONDS:
                return response
            token = self._tokens.replace_rejected(
                token, forward.spotify_user_id, wait_seconds=forward.remaining(MIN_SECONDS)
            )
            require_grant(token, forward.grant_id)
            return self._send(forward, token.access_token)
        except RateLimited as error:
            raise SpotifyRateLimited(retry_after=error.retry_after) from error
        except SpotifyTransportError as error:
            if not forward.call.is_read and not error.not_sent:
                # Many clients repeat a request after a 503, and would then skip two tracks.
                raise SpotifyOutcomeUnknown from error
            raise SpotifyUnavailable(retry_after=error.retry_after) from error

    def _send(self, forward: _Forward, access_token: str) -> HttpResponse:
        return self._web_api.send(
            forward.call,
            access_token,
            client_id=forward.connection.token.client_id,
            spotify_user_id=forward.spotify_user_id,
            timeout=min(CALL_SECONDS, forward.remaining()),
            deadline=forward.deadline,
            check=forward.prepared.check,
        )

    def _ttl(self, call: Call, response: HttpResponse) -> float:
        """Return for how many seconds a response can be shared."""
        if response.status in (401, 403):
            return 0  # the missing permission can be granted at any moment
        if call.is_poll:
            return self._poll_ttl
        # Without a condition, a 304 makes no sense.
        if response.status != 200 and not (response.status == 304 and call.etags):
            return 0
        control = parse_cache_control_header(response.headers.get("cache-control"), cls=ResponseCacheControl)
        if control.no_store or control.no_cache:
            return 0
        return min(max(control.max_age or 0, 0), MAX_TTL_SECONDS)


def _pauses() -> Iterator[float]:
    """Yield how many seconds a waiting caller should pause before each lookup.

    The pauses grow: many callers may wait for a slow Spotify, and lookups cost CPU time.
    """
    pause, began = 0.01, time.monotonic()
    while True:
        yield pause
        longest = min(max(0.05, (time.monotonic() - began) / 20), 0.3)
        pause = min(pause * 1.5, longest)


def _cached(found: Lookup, label: Literal["hit", "shared"]) -> GatewayResponse:
    """Return the response that a lookup has found.

    Raises:
        SpotifyUnavailable: The leader got no response.
    """
    entry = found.entry
    if entry is None or entry.status == FAILED:
        raise SpotifyUnavailable(retry_after=None if entry is None else entry.retry_after)
    return GatewayResponse(HttpResponse(entry.status, entry.headers, entry.body), label, found.age)


def _require_forwardable(response: HttpResponse, call: Call, connection: ConnectionSnapshot) -> None:
    """Require that a response can be forwarded to the caller.

    Raises:
        InsufficientScope: Spotify says that a scope is missing.
        SpotifyUnavailable: It is a redirect.
    """
    if lacks_scope(response):
        missing = missing_scopes(call, connection.token.scopes)
        detail = "Spotify was connected without the permission that this call needs."
        raise InsufficientScope(detail, missing_scopes=missing)
    if 300 <= response.status < 400 and response.status != 304:
        raise SpotifyUnavailable("Spotify responded with a redirect, which the gateway does not follow.")
