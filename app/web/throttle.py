"""Limits on password guessing and on flooding, counted in Redis for all processes.

An attempt is counted before the password is checked, so a hundred concurrent attempts count as much as a
hundred consecutive ones. Without Redis no password is checked: the response is 503.
"""

import hashlib
import hmac
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from prometheus_client import Counter

from app.errors import TooManyAttempts
from app.infra import redis_scripts
from app.infra.hourly_counts import HourlyCounts
from app.infra.metrics import best_effort
from app.infra.redis_scripts import Script
from app.web.client_address import client_network

log = logging.getLogger(__name__)

# For one account from one address: this many attempts, then a wait that every failure doubles.
FREE_ATTEMPTS = 10
FIRST_WAIT_SECONDS = 1
MAX_WAIT_SECONDS = 900
FORGET_AFTER_SECONDS = 86_400
# For one account from all addresses. Beyond that, each address has one attempt before it has to wait.
# That locks no one out: the owner can still sign in from an address that has not failed.
ACCOUNT_FAILURE_LIMIT = 100
# For all accounts from one address.
ADDRESS_FAILURE_LIMIT = 100
HOUR_SECONDS = 3600

_THROTTLED = Counter(
    "backline_throttled", "Requests that a limit on what callers do has rejected.", ["limit"]
)
_THROTTLED.labels("guesses")  # the others appear when they are needed


class Throttle:
    """Counts what callers do. Redis learns neither names nor addresses: keys are keyed hashes of them."""

    def __init__(self, client: redis.Redis, secret_key: str, hourly: HourlyCounts) -> None:
        self._client = client
        self._hourly = hourly
        self._secret_key = secret_key.encode()
        self._attempt = _script("throttle_attempt.lua")
        self._cancel = _script("throttle_cancel.lua")
        self._hit = _script("throttle_hit.lua")
        self._reserve = _script("throttle_reserve.lua")
        self._release = _script("throttle_release.lua")

    def attempt(self, account: str) -> None:
        """Count a password attempt as failed, until `succeed` or `cancel` undoes that.

        `account` is the caller's name for it, whether or not there is such an account.

        Raises:
            TooManyAttempts: This address has to wait before it may try again.
            redis.RedisError: The attempt cannot be counted.
        """
        limits = (
            FREE_ATTEMPTS,
            ACCOUNT_FAILURE_LIMIT,
            FIRST_WAIT_SECONDS,
            MAX_WAIT_SECONDS,
            FORGET_AFTER_SECONDS,
            ADDRESS_FAILURE_LIMIT,
            HOUR_SECONDS,
        )
        self._require_no_wait(self._call(self._attempt, self._attempt_keys(account), *limits), "guesses")

    def cancel(self, account: str) -> None:
        """Undo `attempt`: the password could not be checked. Without Redis, the attempt stays counted."""
        with suppress(redis.RedisError):
            self._call(self._cancel, self._attempt_keys(account))

    def succeed(self, account: str) -> None:
        """Undo `attempt`, and forget earlier failures for this account: the password is right.

        Raises:
            redis.RedisError: Redis is not available.
        """
        self._call(self._cancel, self._attempt_keys(account))
        self.reset(account)

    def reset(self, account: str) -> None:
        """Forget failures for an account from this address: the caller has proved by email to be its owner.

        Raises:
            redis.RedisError: Redis is not available.
        """
        self._client.delete(*self._attempt_keys(account)[:2])

    def hit(self, event: str, key: str, *, limit: int, seconds: int = HOUR_SECONDS) -> None:
        """Count an event that may happen `limit` times in `seconds` for each key.

        Raises:
            TooManyAttempts: The limit has been reached.
            redis.RedisError: The event cannot be counted.
        """
        self._require_no_wait(self._call(self._hit, [self._key(event, key)], limit, seconds), event)

    def reserve(
        self, event: str, operation: str, caller: str, *, limit: int, limit_per_caller: int, seconds: int
    ) -> str:
        """Count an operation that takes a while. Returns the counter's key, which `release` needs.

        In `seconds`, an address may start `limit` operations that have not succeeded, and each caller there
        may have `limit_per_caller` that have not ended.

        Raises:
            TooManyAttempts: One of the limits has been reached.
            redis.RedisError: The operation cannot be counted.
        """
        counter = self._key(event, client_network())
        limits = (limit, limit_per_caller, seconds * 1000)
        wait = self._call(self._reserve, [counter, _each(counter)], operation, caller, *limits)
        self._require_no_wait(wait, event)
        return counter

    def release(self, counter: str, operation: str, caller: str, *, succeeded: bool) -> None:
        """Record that an operation has ended.

        Raises:
            redis.RedisError: Redis is not available.
        """
        self._call(self._release, [counter, _each(counter)], operation, caller, int(succeeded))

    def _require_no_wait(self, milliseconds: Any, limit: str) -> None:
        """Raise if a script returned a wait.

        Raises:
            TooManyAttempts: There is a wait.
        """
        if not milliseconds:
            return
        log.warning("throttled", extra={"limit": limit})
        with best_effort():
            _THROTTLED.labels(limit).inc()
        self._hourly.add(f"throttled:{limit}")
        raise TooManyAttempts(retry_after=math.ceil(int(milliseconds) / 1000))

    def _call(self, script: Script, keys: list[str], *arguments: str | int) -> Any:
        return redis_scripts.call(self._client, script, keys, *arguments)

    def _attempt_keys(self, account: str) -> list[str]:
        # The braces put all of them into one slot of a cluster, because a script uses three at a time.
        address = client_network()
        return [
            self._key("pair", account, address, group="{guesses}:"),
            self._key("account", account, group="{guesses}:"),
            self._key("address", address, group="{guesses}:"),
        ]

    def _key(self, kind: str, *names: str, group: str = "") -> str:
        text = "\0".join((kind, *names))
        digest = hmac.new(self._secret_key, text.encode(), hashlib.sha256).hexdigest()
        return f"throttle:{kind}:{group}{digest[:32]}"


def _each(counter: str) -> str:
    """Return the key for the callers that a counter counts, in the same slot of a cluster."""
    return f"throttle:each:{{{counter}}}"


def _script(name: str) -> Script:
    return Script(Path(__file__).with_name(name))
