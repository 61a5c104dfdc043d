"""What a response of the token endpoint means: the result of an attempt, which `completions` stores."""

import logging
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from app.infra.encryption import TokenCipher
from app.models import AccessToken
from app.models.token_refresh import Outcome
from app.spotify.clients.application import Application, ApplicationKind
from app.spotify.clients.errors import InvalidGrant, Misconfigured, RateLimited, SpotifyError
from app.spotify.clients.token_response import TokenResponse
from app.spotify.tokens import transitions
from app.spotify.tokens.encryption import encrypt_refresh_token, encrypt_tokens
from app.spotify.tokens.transitions import Transition, Values

log = logging.getLogger(__name__)

# How long to keep trying to store a result. After the lease, another caller may have refreshed the grant;
# but a new refresh token may be the only valid one, so it is worth more time.
STORE_SECONDS, STORE_ORPHAN_TOKEN_SECONDS = 25.0, 300.0


@dataclass(frozen=True)
class Attempt:
    """A claim on one generation of a grant."""

    id: str
    generation: int
    claimed_at: datetime
    send_until: float  # `time.monotonic`
    application: Application
    is_probe: bool = False  # the breaker was open
    probes_application: bool = False  # the user's own application was paused


@dataclass(frozen=True, eq=False)
class Result:
    """What a call's response means for its grant. `orphan_token` is a new refresh token, encrypted."""

    row: AccessToken
    attempt: Attempt
    outcome: Outcome
    transition: Transition
    orphan_token: object = field(default=None, repr=False)
    error: SpotifyError | None = None  # why the call failed
    backoff: timedelta = timedelta(0)
    received_at: float = field(default_factory=time.monotonic)

    @property
    def store_until(self) -> float:
        """How long to keep trying to store it (`time.monotonic`)."""
        seconds = STORE_SECONDS if self.orphan_token is None else STORE_ORPHAN_TOKEN_SECONDS
        return self.received_at + seconds

    @property
    def kind(self) -> ApplicationKind:
        """Whose application the grant belongs to."""
        return ApplicationKind.of(self.row.client_id)

    @property
    def is_rejection(self) -> bool:
        """Whether Spotify rejected the grant itself."""
        return self.outcome in (Outcome.INVALID_GRANT, Outcome.AGED)


class Results:
    """Maps responses and errors to results."""

    def __init__(self, cipher: TokenCipher, refresh_lead: timedelta) -> None:
        self._cipher = cipher
        self._refresh_lead = refresh_lead

    def of_response(
        self, row: AccessToken, attempt: Attempt, response: TokenResponse, presented: str
    ) -> Result:
        """Return the result of a refresh: the new tokens, in the next generation."""
        refresh_token = response.refresh_token or presented
        values = {
            **transitions.after_success(
                attempt.claimed_at, timedelta(seconds=response.expires_in), self._refresh_lead
            ),
            **encrypt_tokens(self._cipher, row, response.access_token, refresh_token),
            "generation": row.generation + 1,
        }
        if response.scope is not None:
            values["scope"] = response.scope
        orphan_token = values["refresh_token"] if refresh_token != presented else None
        return Result(row, attempt, Outcome.REFRESHED, lambda _: values, orphan_token)

    def of_error(self, row: AccessToken, attempt: Attempt, error: SpotifyError, presented: str) -> Result:
        """Return the result of a call that returned no access token."""
        salvaged = self._salvaged(row, error, presented)
        orphan_token = salvaged.get("refresh_token")
        # A new refresh token that came with the rejection is not rejected, and neither is the grant.
        if isinstance(error, InvalidGrant) and not salvaged:
            is_expected = transitions.is_rejection_expected(row, attempt.claimed_at)
            outcome = Outcome.AGED if is_expected else Outcome.INVALID_GRANT
            return Result(row, attempt, outcome, partial(transitions.after_rejection, row), error=error)
        outcome = _outcome_of(error)
        level = logging.ERROR if outcome is Outcome.MISCONFIGURED else logging.WARNING
        log.log(
            level,
            "token_refresh_failed",
            extra={"spotify_user_id": row.spotify_user_id, "reason": str(error)},
        )
        backoff = transitions.backoff(row, error.retry_after)
        transition = partial(transitions.after_failure, row, backoff, salvaged=salvaged)
        return Result(row, attempt, outcome, transition, orphan_token, error, backoff)

    def _salvaged(self, row: AccessToken, error: SpotifyError, presented: str) -> Values:
        """Return the columns for a new refresh token that came with a failure.

        It replaces the one that was presented. A server that accepts each token only once may treat a second
        use of the old one as theft, and end the grant. The old one is kept as the spare.
        """
        if error.refresh_token in (None, presented):
            return {}
        log.warning("refresh_token_salvaged", extra={"spotify_user_id": row.spotify_user_id})
        return encrypt_refresh_token(self._cipher, row, error.refresh_token, spare=presented)


def _outcome_of(error: SpotifyError) -> Outcome:
    if isinstance(error, Misconfigured):
        return Outcome.MISCONFIGURED
    return Outcome.RATE_LIMITED if isinstance(error, RateLimited) else Outcome.UNAVAILABLE
