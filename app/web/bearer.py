"""Bearer tokens in requests (RFC 6750): which requests have one, and what happens when one is presented.

A request with a bearer token has no session: its cookie is neither read nor set. Browsers send no such token
by themselves, so another site cannot make one send it, and `app.web.csrf` does not apply.
`app.web.identity` looks the token up, and `app.web.access` decides what it may do.
"""

import logging
from enum import StrEnum
from typing import NoReturn

import sqlalchemy as sa
from flask import Request, request
from prometheus_client import Counter

from app.errors import DEPENDENCY_DOWN, InvalidBearerToken
from app.infra.bearer_token import hash_token, is_well_formed
from app.infra.database import database_now, run_in_transaction
from app.infra.expiring_cache import ExpiringCache
from app.infra.metrics import best_effort
from app.models import PersonalAccessToken
from app.web.client_address import client_network
from app.web.snapshot_cache import TokenSubject
from app.web.throttle import HOUR_SECONDS, Throttle

log = logging.getLogger(__name__)

_REQUESTS = Counter("backline_bearer_requests", "Requests with a bearer token.", ["outcome"])

# Under these paths, only bearer tokens are accepted.
BEARER_ONLY = "/v1/"
# From one address. Valid tokens do not count, and always work.
UNKNOWN_TOKENS_PER_HOUR = 100
# How often each process records that a token is in use.
USE_INTERVAL_SECONDS, MAX_RECORDED_TOKENS = 300.0, 4096


def credential(request: Request) -> str | None:
    """Return what a request presents as a bearer token, if it does. Other schemes are ignored."""
    header: str | None = request.environ.get("HTTP_AUTHORIZATION")
    if header is None:
        return None
    scheme, _, value = header.strip(" ").partition(" ")
    return value.strip(" ") if scheme.lower() == "bearer" else None


def replaces_cookie(request: Request) -> bool:
    """Return whether a request counts as without a cookie, even if it has one."""
    rule = request.url_rule
    return credential(request) is not None or (rule is not None and rule.rule.startswith(BEARER_ONLY))


class TokenState(StrEnum):
    """What is known of a request's bearer token."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    ENDED = "ended"
    VALID = "valid"


class BearerTokens:
    """Finds tokens by their hash, limits guesses, and records use."""

    def __init__(self, secret_key: str, throttle: Throttle) -> None:
        self._secret_key = secret_key
        self._throttle = throttle
        self._recorded: ExpiringCache[int, bool] = ExpiringCache(MAX_RECORDED_TOKENS, USE_INTERVAL_SECONDS)
        self._rejected: ExpiringCache[TokenSubject, bool] = ExpiringCache(MAX_RECORDED_TOKENS, HOUR_SECONDS)

    def subject(self, request: Request) -> TokenSubject | None:
        """Return what to look up for a request. None if it presents no token, or a malformed one."""
        presented = credential(request)
        if presented is None or not is_well_formed(presented):
            return None
        return TokenSubject(hash_token(self._secret_key, presented))

    def reject(self, state: TokenState) -> NoReturn:
        """Reject a token that is not valid.

        Raises:
            InvalidBearerToken: Always, unless another error is raised.
            TooManyAttempts: It is unknown, like many others from this address.
            redis.RedisError: An unknown token cannot be counted.
        """
        count(state)
        log.info("bearer_token_rejected", extra={"reason": state})
        subject = self.subject(request) if state is TokenState.UNKNOWN else None
        # The same one again is no guess, but a script whose token was revoked.
        if subject is not None and not self._rejected.get(subject):
            self._throttle.hit("bearer-tokens", client_network(), limit=UNKNOWN_TOKENS_PER_HOUR)
            self._rejected.put(subject, True)
        raise InvalidBearerToken

    def record_use(self, token_id: int) -> None:
        """Record when and from where a token was used, every few minutes. A failure is only logged."""
        if self._recorded.get(token_id):
            return
        self._recorded.put(token_id, True)
        used = sa.update(PersonalAccessToken).where(PersonalAccessToken.id == token_id)
        used = used.values(last_used_at=database_now(), last_used_ip=request.remote_addr)
        try:
            run_in_transaction(lambda db: db.execute(used), is_idempotent=True)
        except DEPENDENCY_DOWN as error:
            log.warning("token_use_not_recorded", extra={"reason": type(error).__name__})


def count(outcome: str) -> None:
    """Count a request with a bearer token."""
    with best_effort():
        _REQUESTS.labels(outcome).inc()
