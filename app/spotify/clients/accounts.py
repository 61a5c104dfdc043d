"""accounts.spotify.com: where people consent, and where codes and refresh tokens become access tokens.

SpotifyError            it did not work; trying again later may help
├── NotSent             Spotify has not seen the request, so a code or token in it is as good as before
├── InvalidGrant        the code or refresh token is spent, revoked or expired; trying again is no use
├── Misconfigured       Spotify refuses *us*: client id, secret, or the person's place on our allowlist
└── RateLimited         Spotify asks us to wait `retry_after` seconds
"""

import hashlib
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from app.infra.http_client import TOTAL_SECONDS, HttpClient, HttpResponse, TransportError
from app.spotify.clients import token_response
from config import Config

# Refusals that are about the application, never about the person (RFC 6749 section 5.2).
_OUR_FAULT = ("invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope")


class SpotifyError(Exception):
    """Spotify refused, or did not answer. Worth another try: in `retry_after` seconds, if it says so.

    `refresh_token` is a new one that came with a reply which is of no other use.
    """

    retry_after: int | None = None
    refresh_token: str | None = None


class NotSent(SpotifyError):
    """No connection was made, so the request cannot have had an effect."""


class InvalidGrant(SpotifyError):
    """The code or refresh token is spent, revoked or expired. Trying again is no use."""


class Misconfigured(SpotifyError):
    """Spotify refuses this application, whoever the person is."""


class RateLimited(SpotifyError):
    """Spotify asks us to wait."""

    def __init__(self, retry_after: int | None) -> None:
        super().__init__("rate_limited")
        self.retry_after = retry_after


@dataclass(frozen=True)
class TokenResponse:
    """What the token endpoint gave. `refresh_token` is None where the old one stays good."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int  # seconds
    scope: str | None  # None where the answer does not say


class SpotifyAccounts:
    def __init__(self, config: Config, outbound: HttpClient) -> None:
        self._config = config
        self._outbound = outbound

    def authorize_url(self, *, state: str, verifier: str) -> str:
        """Return the URL at which a person consents.

        `show_dialog` makes Spotify ask people who have consented before, too. Without it, Spotify would send
        them straight back, and a visit to a URL would undo a disconnect, in this browser or any other.

        Source: https://developer.spotify.com/documentation/web-api/tutorials/code-flow,
        RFC 7636 section 4.2 for the challenge.
        """
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": self._config.spotify_client_id,
            "response_type": "code",
            "redirect_uri": self._config.spotify_redirect_uri,
            "scope": " ".join(self._config.spotify_scopes),
            "state": state,
            "code_challenge_method": "S256",
            "code_challenge": challenge,
            "show_dialog": "true",
        }
        return f"{self._config.spotify_accounts_url}/authorize?{urlencode(query)}"

    def exchange(self, code: str, *, verifier: str) -> TokenResponse:
        """Trade an authorization code for tokens. A code works once, for about ten minutes.

        Raises:
            InvalidGrant: the code is not (or no longer) good.
            SpotifyError: anything else.
        """
        deadline = time.monotonic() + TOTAL_SECONDS
        try:
            grant = self._ask_for_token(
                grant_type="authorization_code",
                code=code,
                redirect_uri=self._config.spotify_redirect_uri,
                code_verifier=verifier,
            )
        except SpotifyError as error:
            left = deadline - time.monotonic()
            if error.refresh_token is None or left <= 1:
                raise
            # The code is used up, but the refresh token that came with the reply is as good as a grant.
            try:
                grant = self._refresh(error.refresh_token, within=left)
            except SpotifyError:
                raise error from None  # which is about the code
            grant = replace(grant, refresh_token=grant.refresh_token or error.refresh_token)
        if grant.refresh_token is None:
            raise SpotifyError("no_refresh_token")
        if grant.scope is None:
            # Left out, it is what was asked for (RFC 6749 section 5.1).
            return replace(grant, scope=" ".join(self._config.spotify_scopes))
        return grant

    def refresh(self, refresh_token: str) -> TokenResponse:
        """Trade a refresh token for a new access token.

        Spotify may leave `refresh_token` out of the answer; the old one then stays good. It
        lives six months from the person's consent, and a refresh does not extend it.

        Source: https://developer.spotify.com/documentation/web-api/tutorials/refreshing-tokens

        Raises:
            InvalidGrant: the token is revoked or expired.
            SpotifyError: anything else, including no answer within the deadline. Its `refresh_token`,
                if any, takes the place of the one presented.
        """
        return self._refresh(refresh_token)

    def _refresh(self, refresh_token: str, *, within: float | None = None) -> TokenResponse:
        return self._ask_for_token(within, grant_type="refresh_token", refresh_token=refresh_token)

    def _ask_for_token(self, within: float | None = None, **form: str) -> TokenResponse:
        try:
            answer = self._outbound.send(
                "POST",
                f"{self._config.spotify_accounts_url}/api/token",
                timeout=within,
                data=form,
                auth=(self._config.spotify_client_id, self._config.spotify_client_secret),
                headers={"Accept": "application/json"},
            )
        except TransportError as no_answer:
            error = (NotSent if no_answer.not_sent else SpotifyError)("no_answer")
            error.refresh_token = token_response.read(no_answer.received).refresh_token
            raise error from no_answer
        return _grant(answer)


def _refusal(answer: HttpResponse) -> SpotifyError:
    """What an answer other than 200 means.

    Only a 400 with an OAuth error says anything about the grant or about us. `error_description`
    is never looked at: its wording has changed before.
    """
    if answer.status == 429:
        return RateLimited(answer.retry_after)
    if answer.status in (400, 401):
        reason = answer.json_object().get("error")
        if reason == "invalid_grant" and answer.status == 400:
            return InvalidGrant()
        if reason in _OUR_FAULT:
            return Misconfigured(reason)
    error = SpotifyError(f"status_{answer.status}")
    error.retry_after = answer.retry_after
    return error


def _grant(answer: HttpResponse) -> TokenResponse:
    """What a reply gives.

    Raises:
        SpotifyError: no access token; with the refresh token, should the reply have one.
    """
    found = token_response.read(answer.body)
    if answer.status == 200 and found.access_token is not None:
        return TokenResponse(found.access_token, found.refresh_token, found.expires_in, found.scope)
    error = SpotifyError("no_access_token") if answer.status == 200 else _refusal(answer)
    error.refresh_token = found.refresh_token
    raise error
