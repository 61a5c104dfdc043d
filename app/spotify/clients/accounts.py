"""accounts.spotify.com: where people consent, and where codes and refresh tokens are exchanged for tokens."""

import hashlib
import time
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote, urlencode

from app.infra.http_client import TOTAL_SECONDS, HttpClient, HttpResponse, TransportError
from app.spotify.clients import token_response
from app.spotify.clients.application import Application
from app.spotify.clients.errors import (
    InvalidGrant,
    Misconfigured,
    RateLimited,
    SpotifyError,
    SpotifyTransportError,
)
from app.spotify.clients.token_response import NoAccessToken, TokenResponse
from config import Config

# Errors that concern the application, never the person (RFC 6749 section 5.2).
_MISCONFIGURED = ("invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope")
# An exchange is retried with its refresh token only if this much of its time is left.
_MIN_RETRY_SECONDS = 1.0


class SpotifyAccounts:
    """Client of the accounts service."""

    def __init__(self, config: Config, http_client: HttpClient) -> None:
        self._config = config
        self._http_client = http_client

    def authorize_url(
        self, application: Application, *, state: str, verifier: str, optional_scopes: Sequence[str] = ()
    ) -> str:
        """Return the URL at which a person consents to SPOTIFY_SCOPES and these.

        With `show_dialog`, Spotify also asks people who have consented before. Without it, Spotify would send
        them straight back, and merely visiting a URL could undo a disconnect, in any browser.

        Source: https://developer.spotify.com/documentation/web-api/tutorials/code-flow,
        RFC 7636 section 4.2 for the challenge.
        """
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": application.client_id,
            "response_type": "code",
            "redirect_uri": self._config.spotify_redirect_uri,
            "scope": " ".join((*self._config.spotify_scopes, *optional_scopes)),
            "state": state,
            "code_challenge_method": "S256",
            "code_challenge": challenge,
            "show_dialog": "true",
        }
        return f"{self._config.spotify_accounts_url}/authorize?{urlencode(query)}"

    def exchange(
        self, application: Application, code: str, *, verifier: str, optional_scopes: Sequence[str] = ()
    ) -> TokenResponse:
        """Exchange an authorization code for tokens. A code works once, for about ten minutes.

        Application and `optional_scopes` are those of its authorization.

        Raises:
            InvalidGrant: The code is invalid, used, or expired.
            SpotifyError: Anything else.
        """
        deadline = time.monotonic() + TOTAL_SECONDS
        try:
            tokens = self._request_tokens(
                application,
                grant_type="authorization_code",
                code=code,
                redirect_uri=self._config.spotify_redirect_uri,
                code_verifier=verifier,
            )
        except SpotifyError as error:
            tokens = self._recover(application, error, deadline)
        if tokens.refresh_token is None:
            raise SpotifyError("no_refresh_token")
        if tokens.scope is None:
            # If it is omitted, it is the requested one (RFC 6749 section 5.1).
            return replace(tokens, scope=" ".join((*self._config.spotify_scopes, *optional_scopes)))
        return tokens

    def refresh(self, application: Application, refresh_token: str) -> TokenResponse:
        """Exchange a refresh token, which was issued to this application, for a new access token.

        Without a refresh token in the response, the old one remains valid. It expires six months after the
        person's consent, and refreshing does not extend that.

        Source: https://developer.spotify.com/documentation/web-api/tutorials/refreshing-tokens

        Raises:
            InvalidGrant: The token is revoked or expired.
            SpotifyError: Anything else, including a missed deadline. A `refresh_token` that it has replaces
                the one that was sent.
        """
        return self._request_tokens(application, grant_type="refresh_token", refresh_token=refresh_token)

    def check_client(self, application: Application) -> None:
        """Check that Spotify accepts an application's id and secret. No person is involved.

        That is not possible for a public client, which has no secret: see `check_public_client`.

        Source: https://developer.spotify.com/documentation/web-api/tutorials/client-credentials-flow

        Raises:
            Misconfigured: It does not.
            SpotifyError: It did not respond usably.
        """
        self._request_tokens(application, grant_type="client_credentials")

    def check_public_client(self, application: Application) -> None:
        """Check that Spotify knows the client id of an application without a secret.

        It sends a code that Spotify has not issued. Spotify rejects that as well, but as an invalid grant.

        Raises:
            Misconfigured: Spotify does not know the client id.
            SpotifyError: It did not respond usably.
        """
        try:
            self._request_tokens(
                application,
                grant_type="authorization_code",
                code="none",
                redirect_uri=self._config.spotify_redirect_uri,
                code_verifier="none" * 11,
            )
        except SpotifyError as error:
            # Another reason for a 400 concerns the rest of the request.
            if not isinstance(error, InvalidGrant) and str(error) != "status_400":
                raise

    def _recover(self, application: Application, error: SpotifyError, deadline: float) -> TokenResponse:
        """Return tokens for the refresh token of a failed exchange. Its code is used, but the grant exists.

        Raises:
            SpotifyError: `error`, if there is no refresh token or no time left, or refreshing fails too.
        """
        remaining = deadline - time.monotonic()
        if error.refresh_token is None or remaining <= _MIN_RETRY_SECONDS:
            raise error
        try:
            tokens = self._request_tokens(
                application, remaining, grant_type="refresh_token", refresh_token=error.refresh_token
            )
        except SpotifyError:
            raise error from None
        return replace(tokens, refresh_token=tokens.refresh_token or error.refresh_token)

    def _request_tokens(
        self, application: Application, timeout: float | None = None, **form: str
    ) -> TokenResponse:
        if (credentials := _credentials(application)) is None:
            form["client_id"] = application.client_id  # RFC 6749 section 3.2.1
        try:
            response = self._http_client.send(
                "POST",
                f"{self._config.spotify_accounts_url}/api/token",
                timeout=timeout,
                data=form,
                auth=credentials,
                headers={"Accept": "application/json"},
            )
        except TransportError as cause:
            error = SpotifyTransportError(not_sent=cause.not_sent)
            error.refresh_token = token_response.find_refresh_token(cause.received)
            raise error from cause
        return _read_tokens(response)


def _credentials(application: Application) -> tuple[str, str] | None:
    """Return user name and password for HTTP Basic, or None for a public client.

    They are encoded before HTTP Basic encodes them again (RFC 6749 section 2.3.1).
    """
    if application.client_secret is None:
        return None
    return quote(application.client_id, safe=""), quote(application.client_secret, safe="")


def _read_tokens(response: HttpResponse) -> TokenResponse:
    """Return the tokens in a response.

    Raises:
        SpotifyError: There is no access token. If there is a refresh token, the error has it.
    """
    if response.status == 200:
        try:
            return token_response.parse(response.body)
        except NoAccessToken as cause:
            error = SpotifyError("no_access_token")
            error.refresh_token = cause.refresh_token
            raise error from None
    error = _error_for(response)
    error.refresh_token = token_response.find_refresh_token(response.body)
    raise error


def _error_for(response: HttpResponse) -> SpotifyError:
    """Return what a response other than 200 means.

    Only a 400 with an OAuth error concerns the grant or this application. `error_description` decides
    nothing: its wording has changed before.
    """
    if response.status == 429:
        return RateLimited(response.retry_after)
    if response.status in (400, 401):
        members = response.json_object()
        reason = members.get("error")
        if reason == "invalid_grant" and response.status == 400:
            return InvalidGrant()
        if reason in _MISCONFIGURED:
            return Misconfigured(reason, members.get("error_description"))
    return SpotifyError(f"status_{response.status}", retry_after=response.retry_after)
