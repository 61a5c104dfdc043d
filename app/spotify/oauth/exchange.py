"""Exchanges an authorization code for tokens, and maps Spotify's errors to ours."""

import logging
import math

from app.errors import (
    BacklineError,
    SpotifyAccessDenied,
    SpotifyAppRefused,
    SpotifyMisconfigured,
    SpotifyRateLimited,
    SpotifyUnavailable,
    SpotifyUserNotRegistered,
)
from app.infra import database
from app.spotify.applications.pauses import ApplicationPauses
from app.spotify.clients.accounts import SpotifyAccounts
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead
from app.spotify.clients.application import Application
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.errors import (
    InvalidGrant,
    Misconfigured,
    RateLimited,
    SpotifyError,
    SpotifyTransportError,
)
from app.spotify.clients.profile import Profile
from app.spotify.clients.rate_limit import ME
from app.spotify.clients.token_response import TokenResponse
from app.spotify.clients.web_api import SpotifyWebApi
from app.spotify.oauth.state import Authorization, AuthorizationStore
from app.spotify.tokens import breaker
from app.web.client_address import client_network
from app.web.throttle import Throttle

log = logging.getLogger(__name__)

# Limited because every exchange is a call to Spotify.
MAX_EXCHANGES_PER_ADDRESS, EXCHANGES_SECONDS = 1000, 600
_NOT_ON_ALLOWLIST = (
    "Spotify rejects this application or this person. If the application is in development mode, "
    "its owner has to add the person to the allowlist in Spotify's developer dashboard."
)
# Errors of the authorization endpoint that are caused by this application's request.
_MISCONFIGURED = ("invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope")


class CodeExchange:
    """Exchanges the code of a callback for tokens, and uses them to fetch the person's profile."""

    def __init__(
        self,
        authorizations: AuthorizationStore,
        accounts: SpotifyAccounts,
        accounts_bulkhead: AccountsBulkhead,
        web_api: SpotifyWebApi,
        limits: ClientLimitsRegistry,
        throttle: Throttle,
        pauses: ApplicationPauses,
    ) -> None:
        self._authorizations = authorizations
        self._accounts = accounts
        self._bulkhead = accounts_bulkhead
        self._web_api = web_api
        self._limits = limits
        self._throttle = throttle
        self._pauses = pauses

    def exchange(
        self, code: str, authorization: Authorization, application: Application
    ) -> tuple[Authorization, TokenResponse] | None:
        """Consume an authorization, and exchange the code. Returns None if a duplicate was first.

        If the exchange fails and the code was certainly not used, the authorization is reopened, so that the
        callback can be repeated.

        Raises:
            SpotifyAccessDenied: Spotify rejected the code.
            SpotifyUnavailable: Spotify does not respond, or its response cannot be used.
            SpotifyRateLimited: Spotify's rate limit has been reached.
            SpotifyMisconfigured: Spotify rejects the deployment's application.
            SpotifyAppRefused: Spotify rejects the person's own application.
            TooManyAttempts: This address has sent too many codes.
        """
        self._require_ready(application)
        with self._bulkhead.exchanging(application.own_client_id):
            consumed = self._authorizations.consume(authorization, code)
            if consumed is None:
                return None
            try:
                tokens = self._accounts.exchange(
                    application,
                    code,
                    verifier=consumed.verifier,
                    optional_scopes=consumed.record.optional_scopes,
                )
            except SpotifyError as error:
                not_sent = isinstance(error, SpotifyTransportError) and error.not_sent
                if not_sent or isinstance(error, RateLimited):
                    self._authorizations.reopen(consumed)
                else:
                    self._authorizations.record_result(consumed, None)
                raise _domain_error(error, application) from None
        if application.id is None:
            breaker.client_accepted()
        else:
            self._pauses.client_accepted(application)
        return consumed, tokens

    def profile(self, tokens: TokenResponse, application: Application) -> Profile:
        """Fetch the profile of the person who has authorized an application.

        Raises:
            SpotifyUserNotRegistered: The person is not on the allowlist of their own application.
            SpotifyUnavailable, SpotifyRateLimited, SpotifyMisconfigured, SpotifyAppRefused: As for
                `exchange`.
        """
        try:
            return self._web_api.get_profile(tokens.access_token, application.own_client_id)
        except SpotifyError as error:
            raise _domain_error(error, application) from None

    def _require_ready(self, application: Application) -> None:
        """Reject the callback before its state is consumed if the rest of the flow would fail.

        Raises:
            SpotifyRateLimited, SpotifyUnavailable: The profile could not be fetched afterwards.
            TooManyAttempts: This address has sent too many codes.
        """
        limits = self._limits.of(application.own_client_id)
        wait = limits.rate_limiter.retry_after(ME)
        if wait > 0:
            raise SpotifyRateLimited(retry_after=math.ceil(wait))
        if limits.circuit_breaker.is_open:
            raise SpotifyUnavailable
        database.read_db_now()  # raises while the database is down
        self._throttle.hit(
            "exchanges", client_network(), limit=MAX_EXCHANGES_PER_ADDRESS, seconds=EXCHANGES_SECONDS
        )


def authorization_error(code: str, client_id: str | None) -> BacklineError:
    """Return our error for an error code of the authorization endpoint (RFC 6749 section 4.1.2.1).

    `client_id` is that of the person's own application, or None for the deployment's.
    """
    if code == "access_denied":
        return SpotifyAccessDenied("Access was not granted, so Spotify was not connected.")
    if code in _MISCONFIGURED and client_id is not None:
        return SpotifyAppRefused("Spotify rejects the authorization requests of your application.")
    if code in _MISCONFIGURED:
        log.error("authorization_misconfigured", extra={"reason": code})
        return SpotifyMisconfigured("Spotify rejects this server's authorization requests.")
    return SpotifyUnavailable("Spotify could not ask for consent. Start again in a moment.")


def _domain_error(error: SpotifyError, application: Application) -> BacklineError:
    """Return our error for an error of one of the clients."""
    if isinstance(error, InvalidGrant):
        return SpotifyAccessDenied("Spotify did not accept the authorization code. Start again.")
    if isinstance(error, RateLimited):
        return SpotifyRateLimited(retry_after=error.retry_after)
    if isinstance(error, Misconfigured) and application.id is not None:
        is_about_person = str(error) == "rejected_by_web_api"
        return SpotifyUserNotRegistered() if is_about_person else SpotifyAppRefused()
    if isinstance(error, Misconfigured):
        log.error("authorization_misconfigured", extra={"reason": str(error)})
        return SpotifyMisconfigured(_NOT_ON_ALLOWLIST if str(error) == "rejected_by_web_api" else None)
    return SpotifyUnavailable(retry_after=error.retry_after)
