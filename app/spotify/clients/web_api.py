"""api.spotify.com: the Web API, called with a person's access token."""

import logging
import math
import time
from dataclasses import dataclass, replace

from app.infra.http_client import HttpClient, HttpResponse, TransportError
from app.spotify.clients import metrics
from app.spotify.clients.call import MIN_SECONDS, Call
from app.spotify.clients.client_limits import ClientLimits, ClientLimitsRegistry
from app.spotify.clients.errors import Misconfigured, RateLimited, SpotifyError, SpotifyTransportError
from app.spotify.clients.profile import Profile, parse_profile
from app.spotify.clients.rate_limit import Check
from config import Config

log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 8 * 1024 * 1024
CALL_SECONDS = 10.0
# An OAuth callback requests tokens first, which can take 10 s. Both must end before a proxy times out.
PROFILE_SECONDS = 4.0
# For a read that shows whether Spotify also rejects other calls.
CANARY_SECONDS = 2.0
# Spotify's edge reports an outage. A 500 may concern only this call.
_OUTAGE_STATUSES = (502, 503, 504)
# Transport errors that concern only the call, and say nothing about whether Spotify works.
_CALL_ERRORS = ("TooBig", "InvalidURL", "InvalidHeader", "ValueError")


@dataclass(frozen=True)
class _AuthorizedCall:
    """A call to make, and on whose behalf. `spotify_user_id` is None for a person who is connecting."""

    call: Call
    access_token: str
    limits: ClientLimits
    spotify_user_id: int | None
    check: Check | None

    def acquire(self, *, until: float = 0.0, check: Check | None = None) -> None:
        """Wait for permission to send a request, as `SpotifyRateLimiter.acquire` does."""
        self.limits.rate_limiter.acquire(
            self.spotify_user_id,
            is_poll=self.call.is_poll,
            scope=self.call.scope,
            until=until,
            check=check,
        )


class SpotifyWebApi:
    """Client of the Web API, with a rate limiter and a circuit breaker for each client id, and one retry."""

    def __init__(self, config: Config, http_client: HttpClient, limits: ClientLimitsRegistry) -> None:
        self._url = config.spotify_api_url
        self._http_client = http_client
        self._limits = limits

    def send(
        self,
        call: Call,
        access_token: str,
        *,
        client_id: str | None = None,
        spotify_user_id: int | None = None,
        timeout: float = CALL_SECONDS,
        deadline: float | None = None,
        check: Check | None = None,
    ) -> HttpResponse:
        """Make a call, and retry it once if that is safe: a read, or a call that was not sent.

        `client_id` is the one that the token was issued to, or None if that is the deployment's. Returns any
        response but a 429. The call takes at most `timeout` seconds. Before it, there may be a wait for the
        budget, as long as the `deadline` (`time.monotonic`) allows. A caller that has a `check` sends
        `check.uncounted` afterwards.

        Raises:
            RateLimited: Spotify asks us to wait, or the budget is used up.
            SpotifyTransportError: No usable reply arrived in time, or the circuit breaker is open.
        """
        limits = self._limits.of(client_id)
        retry_after = limits.circuit_breaker.retry_after()
        if retry_after > 0:
            raise SpotifyTransportError(not_sent=True, retry_after=math.ceil(retry_after))
        authorized = _AuthorizedCall(call, access_token, limits, spotify_user_id, check)
        deadline = time.monotonic() + timeout if deadline is None else deadline
        authorized.acquire(until=deadline - MIN_SECONDS, check=check)
        return self._send_with_retry(authorized, min(timeout, max(1.0, deadline - time.monotonic())))

    def retry_after(self, client_id: str) -> float:
        """Return for how many seconds Spotify rejects all calls of a user's application, or 0."""
        return self._limits.of(client_id).rate_limiter.retry_after()

    def sample_metrics(self) -> None:
        """Record whether the circuit breaker of the deployment's application is open."""
        metrics.sample_breaker(is_open=self._limits.deployment.circuit_breaker.is_open)

    def get_profile(self, access_token: str, client_id: str | None = None) -> Profile:
        """Fetch the profile of the person whose token this is. Needs no scope. `client_id` is as for `send`.

        Raises:
            Misconfigured: Spotify responds 403. In development mode, people who are not on the application's
                allowlist can consent, but get this.
            SpotifyError: Anything else.
        """
        response = self.send(Call("GET", "me"), access_token, client_id=client_id, timeout=PROFILE_SECONDS)
        if response.status == 403:
            raise Misconfigured("rejected_by_web_api")
        profile = parse_profile(response.json_object()) if response.status == 200 else None
        if profile is None:
            raise SpotifyError(f"status_{response.status}")
        return profile

    def _send_with_retry(self, authorized: _AuthorizedCall, timeout: float) -> HttpResponse:
        """Send a request, and once more if that is safe and at least half of the time is left."""
        started = time.monotonic()
        try:
            response = self._send_once(authorized, timeout)
        except SpotifyTransportError as error:
            remaining = started + timeout - time.monotonic()
            if not (authorized.call.is_read or error.not_sent) or remaining < timeout / 2:
                raise
            authorized.acquire()
            return self._send_once(authorized, remaining)
        remaining = started + timeout - time.monotonic()
        if not (authorized.call.is_read and _is_worth_a_retry(response)) or remaining < timeout / 2:
            return response
        try:
            authorized.acquire()
            return self._send_once(authorized, remaining)
        except (SpotifyTransportError, RateLimited):
            return response

    def _send_once(self, authorized: _AuthorizedCall, timeout: float) -> HttpResponse:
        response = self._request(authorized, timeout)
        if response.status == 429:
            # The limit is learned from the calls so far.
            authorized.limits.rate_limiter.count(authorized.check)
            raise RateLimited(self._handle_429(authorized, response))
        return response

    def _handle_429(self, authorized: _AuthorizedCall, response: HttpResponse) -> int:
        """Find out which calls a 429 concerns. Returns for how many seconds this call must wait."""
        rate_limiter, scope = authorized.limits.rate_limiter, authorized.call.scope
        rejection = rate_limiter.record_429(scope, response)
        if not rejection.needs_canary:
            return rejection.seconds
        profile_read = replace(authorized, call=Call("GET", "me"), spotify_user_id=None)
        try:
            canary = self._request(profile_read, CANARY_SECONDS)
        except SpotifyTransportError:
            return rejection.seconds
        if canary.status == 200:
            rate_limiter.mark_independent(scope)
        if canary.status != 429:
            return rejection.seconds
        return max(rejection.seconds, rate_limiter.block_all(canary))

    def _request(self, authorized: _AuthorizedCall, timeout: float) -> HttpResponse:
        """Send one request, and record its duration and whether Spotify works."""
        call = authorized.call
        headers = {"Authorization": f"Bearer {authorized.access_token}", "Accept": "application/json"}
        if call.content_type is not None:
            headers["Content-Type"] = call.content_type
        if call.language:
            headers["Accept-Language"] = call.language
        if call.etags:
            headers["If-None-Match"] = call.etags
        started, status = time.perf_counter(), "none"
        try:
            response = self._http_client.send(
                call.method,
                f"{self._url}/{call.target}",
                timeout=timeout,
                max_bytes=MAX_RESPONSE_BYTES,
                headers=headers,
                data=call.body or None,
            )
            status = str(response.status)
        except TransportError as error:
            if str(error) not in _CALL_ERRORS:
                _record_failure(authorized, str(error))
            raise SpotifyTransportError(not_sent=error.not_sent, retry_after=1) from error
        finally:
            metrics.count_call(call, status, authorized.limits.kind, time.perf_counter() - started)
        if response.status in _OUTAGE_STATUSES:
            _record_failure(authorized, f"status_{response.status}")
        else:
            authorized.limits.circuit_breaker.record_success()
        return response


def _record_failure(authorized: _AuthorizedCall, reason: str) -> None:
    limits = authorized.limits
    if limits.circuit_breaker.record_failure(authorized.spotify_user_id):
        log.error("web_api_unavailable", extra={"reason": reason, "client_id": limits.rate_limiter.client_id})


def _is_worth_a_retry(response: HttpResponse) -> bool:
    """Return whether a failed read may succeed immediately: Spotify has not asked for a wait."""
    return response.status in (500, *_OUTAGE_STATUSES) and not response.retry_after
