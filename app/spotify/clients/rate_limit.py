"""Decides which calls to the Web API may be made now, for all processes: Spotify counts by client id.

A 429 concerns one endpoint or the whole application, and Spotify does not say which. It counts as concerning
everything if its body says `QUOTA_EXCEEDED`, if another endpoint was rejected within the last ten seconds, or
if a read of `/me` with the same token (the canary) is rejected too. An endpoint that is rejected while the
canary succeeds is independent. From then on, the ten-second rule does not apply to it: otherwise, two such
endpoints could block everything again and again.

Calls that a 429 concerns are rejected until its `Retry-After` is over, and no thread sleeps. If only our own
budget is used up, a call waits for it as long as its deadline allows.

Source: https://developer.spotify.com/documentation/web-api/concepts/rate-limits
"""

import logging
import math
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import redis

from app.infra import redis_scripts
from app.infra.http_client import HttpResponse
from app.infra.redis_round_trip import Command
from app.infra.redis_scripts import Script
from app.spotify.clients.budget import Budget
from app.spotify.clients.endpoints import SCOPES
from app.spotify.clients.errors import RateLimited

log = logging.getLogger(__name__)

# For a 429 without Retry-After: Spotify counts calls over 30 seconds, and quotas over about a day.
WAIT_SECONDS, QUOTA_WAIT_SECONDS = 30, 3600
MAX_WAIT_SECONDS = 86_400
# If two endpoints are rejected within this time, all calls count as rejected.
SECOND_REJECTION_SECONDS = 10
# All processes together send at most one canary in this time.
CANARY_SECONDS = 10
# How long after a check a call may still begin.
CHECK_SECONDS = 0.5
# An endpoint counts as independent for this long.
INDEPENDENT_SECONDS = 30 * 86_400
# The scope of a wait for all calls, and that of `/me`, the canary, which OAuth callbacks need too.
ALL, ME = "", "me"

_WAITS, _BLOCK, _CLASSIFY = (
    Script(Path(__file__).with_name(f"rate_limit_{name}.lua")) for name in ("waits", "block", "classify")
)


@dataclass(frozen=True)
class Rejection:
    """A 429: how long to wait, and whether to send a canary to find out if it concerns all calls."""

    seconds: int
    needs_canary: bool = False


@dataclass
class Check:
    """What one round trip has found out about a call before it is made. It is valid for a moment.

    `uncounted` has commands that count calls that have been made with this check. Its owner sends them after
    the call.
    """

    wait: float  # for how many seconds Spotify rejects such calls
    is_limited: bool  # whether the call needs room in the budget
    checked_at: float = field(default_factory=time.monotonic)
    uncounted: list[Command] = field(default_factory=list)

    @property
    def is_current(self) -> bool:
        """Whether the check is recent enough to make a call."""
        return time.monotonic() - self.checked_at < CHECK_SECONDS

    def take_uncounted(self) -> list[Command]:
        """Return `uncounted`, and empty it."""
        commands, self.uncounted = self.uncounted, []
        return commands


class SpotifyRateLimiter:
    """Stores the waits of a client id in Redis, and in the memory of each process that has seen them.

    If Redis loses them, the first of those processes that makes a call restores them. `budget` is the number
    of calls that may be made in 30 seconds, or None to learn it.
    """

    def __init__(self, client: redis.Redis, client_id: str, budget: int | None) -> None:
        self._client = client
        self.client_id = client_id
        self._key = f"spotify-wait:{{{client_id}}}"
        self._last_rejection_key = f"spotify-last-rejection:{{{client_id}}}"
        self._canary_key = f"spotify-canary:{{{client_id}}}"
        self._independent_key = f"spotify-independent:{{{client_id}}}"
        self._budget = Budget(client, client_id, budget)
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}  # by scope, `time.monotonic`
        self._last_rejection: tuple[str, float] | None = None  # scope, `time.monotonic`; used without Redis

    def retry_after(self, scope: str = ALL) -> float:
        """Return for how many seconds Spotify rejects calls of this scope, or 0."""
        return self.check(scope).wait

    def endpoint_waits(self) -> dict[str, float]:
        """Return for how many seconds Spotify rejects calls to single endpoints, by scope."""
        scopes = sorted(SCOPES)
        waits = self._waits_from(scopes, self._run(self._waits_command(scopes)))
        return {scope: wait for scope, wait in waits.items() if wait > 0}

    def budget_usage(self) -> tuple[int, int | None]:
        """Return how many calls were made in the last 30 seconds, and how many may be, if there is a limit.

        Raises:
            redis.RedisError: Redis is not available, or the stored data is not ours.
        """
        return self._budget.usage()

    def check_command(self, scope: str) -> Command:
        """Return the command that checks whether a call of this scope may be made, for `read_check`."""
        return self._waits_command(_concerning(scope))

    def read_check(self, scope: str, reply: Any) -> Check:
        """Return what the reply to a `check_command` says."""
        waits = self._waits_from(_concerning(scope), reply)
        has_limit = reply != 0 and (isinstance(reply, redis.RedisError) or bool(reply[0]))
        return Check(max(waits.values()), has_limit or self._budget.is_fixed)

    def check(self, scope: str) -> Check:
        """Check whether a call of this scope may be made."""
        return self.read_check(scope, self._run(self.check_command(scope)))

    def count(self, check: Check | None) -> None:
        """Count the calls that have been made with a check."""
        if check is not None and check.uncounted:
            self._run(*check.take_uncounted())

    def acquire(
        self,
        spotify_user_id: int | None,
        *,
        is_poll: bool,
        scope: str = ALL,
        until: float = 0.0,
        check: Check | None = None,
    ) -> None:
        """Wait for permission to make a call, and count it.

        `spotify_user_id` is None for a person who is connecting. `until` (`time.monotonic`) is how long to
        wait for the budget. With a `check` and without a limit, this takes no round trip, and the caller of
        `check` counts the call afterwards.

        Raises:
            RateLimited: Spotify rejects such calls, or the budget has no room in time.
        """
        current = check if check is not None and check.is_current else None
        has_waited = False
        while True:
            current = current or self.check(scope)
            if current.wait > 0:
                raise RateLimited(math.ceil(current.wait))
            if current is check and not check.is_limited:
                check.uncounted.append(self._budget.count_command(spotify_user_id))
                return
            current = None
            wait = self._budget.spend(spotify_user_id, is_poll=is_poll, has_waited=has_waited)
            if wait <= 0:
                return
            if time.monotonic() + wait > until:
                raise RateLimited(math.ceil(wait))
            time.sleep(wait + random.uniform(0, 0.05))
            has_waited = True

    def record_429(self, scope: str, response: HttpResponse) -> Rejection:
        """Start the wait that a 429 in response to a call of this scope asks for."""
        seconds, is_quota = _parse_429(response)
        concerns = "all" if is_quota else self._classify_429(scope)
        self._log_429(seconds, is_quota=is_quota, route="all" if concerns == "all" else scope)
        if concerns == "all":
            return Rejection(self._start_wait_for_all(seconds))
        self._start_wait(scope, seconds)
        return Rejection(seconds, needs_canary=concerns == "canary" and self.retry_after(ME) <= 0)

    def mark_independent(self, scope: str) -> None:
        """Remember that a scope was rejected while the canary succeeded."""
        self._run(("SET", f"{self._independent_key}:{scope}", 1, "EX", INDEPENDENT_SECONDS))

    def block_all(self, response: HttpResponse) -> int:
        """Block all calls for as long as a 429 asks. Returns the seconds."""
        seconds, is_quota = _parse_429(response)
        self._log_429(seconds, is_quota=is_quota, route="all")
        return self._start_wait_for_all(seconds)

    def _log_429(self, seconds: int, *, is_quota: bool, route: str) -> None:
        about = {"seconds": seconds, "quota": is_quota, "route": route, "client_id": self.client_id}
        log.error("web_api_rate_limited", extra=about)

    def _start_wait_for_all(self, seconds: int) -> int:
        self._start_wait(ALL, seconds)
        self._budget.learn()
        return seconds

    def _classify_429(self, scope: str) -> Literal["all", "canary", "one"]:
        now = time.monotonic()
        with self._lock:
            last, self._last_rejection = self._last_rejection, (scope, now)
        keys = [self._last_rejection_key, self._canary_key, f"{self._independent_key}:{scope}"]
        times = (SECOND_REJECTION_SECONDS * 1000, CANARY_SECONDS * 1000)
        concerns = self._run(_CLASSIFY.command(keys, scope, *times))
        if isinstance(concerns, redis.RedisError):
            is_second = last is not None and last[0] != scope and now - last[1] < SECOND_REJECTION_SECONDS
            return "all" if is_second else "one"
        found: Literal["all", "canary", "one"] = concerns.decode()
        return "one" if found == "canary" and scope == ME else found

    def _start_wait(self, scope: str, seconds: float) -> None:
        with self._lock:
            until = time.monotonic() + seconds
            self._until[scope] = max(self._until.get(scope, 0.0), until)
        self._store_wait(scope, seconds)

    def _waits_command(self, scopes: list[str]) -> Command:
        keys = [self._budget.limit_key, *map(self._key_of, scopes)]
        return _WAITS.command(keys, MAX_WAIT_SECONDS * 1000)

    def _waits_from(self, scopes: list[str], reply: Any) -> dict[str, float]:
        """Return the waits of these scopes: the longer of what Redis and this process know."""
        if isinstance(reply, redis.RedisError):
            return {scope: self._merge(scope, 0.0) for scope in scopes}
        if reply == 0 and not self._until:
            return dict.fromkeys(scopes, 0.0)
        found: dict[str, float] = {}
        for scope, milliseconds in zip(scopes, reply[1:] if reply else [0] * len(scopes), strict=True):
            stored = milliseconds / 1000
            found[scope] = self._merge(scope, stored)
            if found[scope] > stored + 1:
                self._store_wait(scope, found[scope])
        return found

    def _merge(self, scope: str, stored: float) -> float:
        """Return the longer of a stored wait and the one in memory, which is updated."""
        now = time.monotonic()
        with self._lock:
            known = self._until.get(scope, 0.0) - now
            if stored > known:
                self._until[scope] = now + stored
            elif known <= 0:
                self._until.pop(scope, None)
        return max(0.0, known, stored)

    def _store_wait(self, scope: str, seconds: float) -> None:
        self._run(_BLOCK.command([self._key_of(scope)], math.ceil(seconds * 1000)))

    def _run(self, *commands: Command) -> Any:
        """Send commands, and return the first one's reply, which may be an error. Errors are logged."""
        try:
            reply = redis_scripts.run(self._client, *commands)[0]
        except redis.RedisError as error:
            reply = error
        if isinstance(reply, redis.RedisError):
            # Each process has to rely on its own memory.
            log.warning("web_api_waits_not_shared", extra={"reason": type(reply).__name__})
        return reply

    def _key_of(self, scope: str) -> str:
        return f"{self._key}:{scope}" if scope else self._key


def _parse_429(response: HttpResponse) -> tuple[int, bool]:
    """Return for how many seconds a 429 asks, and whether it says that the application's quota is used up."""
    error = response.json_object().get("error")
    is_quota = isinstance(error, dict) and error.get("reason") == "QUOTA_EXCEEDED"
    seconds = response.retry_after
    if seconds is None:
        seconds = QUOTA_WAIT_SECONDS if is_quota else WAIT_SECONDS
    return min(max(seconds, 1), MAX_WAIT_SECONDS), is_quota


def _concerning(scope: str) -> list[str]:
    """Return the scopes that can delay a call of this scope."""
    return [ALL, scope] if scope else [ALL]
