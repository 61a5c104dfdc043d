"""Which calls to the Web API may be made now. All processes share this: Spotify counts by client id.

A 429 is about its endpoint, or about the whole application, which Spotify does not say. It counts as being
about everything if its body says `QUOTA_EXCEEDED`, if another endpoint was refused within the last ten
seconds, or if a read of `/me` with the same token, the canary, is refused too. An endpoint whose 429 came
while the canary was answered refuses by itself. From then on only the canary counts for it, or two such
endpoints could block everything again and again.

Calls that a 429 is about are refused until its `Retry-After` is over; nobody sleeps. Where only our own
budget is used up, a call waits for room in it as long as its deadline allows.

Source: https://developer.spotify.com/documentation/web-api/concepts/rate-limits
"""

import logging
import math
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import redis

from app.infra.http_client import HttpResponse
from app.spotify.clients.accounts import RateLimited
from app.spotify.clients.budget import Budget
from app.spotify.clients.endpoints import SCOPES
from config import Config

log = logging.getLogger(__name__)

# Where a 429 does not say how long: Spotify counts over 30 seconds, and its quotas over about a day.
WAIT_SECONDS, QUOTA_WAIT_SECONDS = 30, 3600
MAX_WAIT_SECONDS = 86_400
# Two endpoints that are refused within this time mean that it is about everything.
SECOND_REFUSAL_SECONDS = 10
# A canary read is made once in this time, by all processes together.
CANARY_SECONDS = 10
# An endpoint is known for this long to refuse by itself.
REFUSES_ALONE_SECONDS = 30 * 86_400
# The scope of a wait for all calls, and that of `/me`, the canary, which callbacks need as well.
ALL, ME = "", "me"


@dataclass(frozen=True)
class Refusal:
    """What a 429 means: a wait of so many seconds, and whether a canary read should find out more."""

    seconds: int
    asks_for_canary: bool = False


class SpotifyRateLimiter:
    """The waits stand in Redis, and in the memory of each process that has met them: a Redis that was
    restarted empty is told again by the first of them that asks."""

    def __init__(self, client: redis.Redis, config: Config) -> None:
        self._client = client
        self._key = f"spotify-wait:{{{config.spotify_client_id}}}"
        self._refused_key, self._canary_key, self._alone_key = (
            f"spotify-{name}:{{{config.spotify_client_id}}}"
            for name in ("refused", "canary", "refuses-alone")
        )
        self._budget = Budget(client, config)
        self._waits, self._close, self._refused = (
            client.register_script((Path(__file__).parent / f"gate_{name}.lua").read_text())
            for name in ("waits", "close", "refused")
        )
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}  # by scope, `time.monotonic`
        self._last_refusal: tuple[str, float] | None = None  # scope, `time.monotonic`; without Redis

    def wait(self, scope: str = ALL) -> float:
        """How many seconds no call of this scope may be made; 0 where there is no wait."""
        waits = self._look(sorted({ALL, scope}))
        return max(waits.values())

    def waits(self) -> dict[str, float]:
        """All waits for a part of the calls, by scope."""
        waits = self._look(sorted(SCOPES))
        return {scope: wait for scope, wait in waits.items() if wait > 0}

    def pass_or_refuse(
        self, link_id: int | None, *, is_poll: bool, scope: str = ALL, until: float = 0.0
    ) -> None:
        """Let a call through, and count it; `link_id` is whose it is, if there is a link yet.

        `until`: how long to wait for room in the budget (`time.monotonic`).

        Raises:
            RateLimited: Spotify wants a wait, or the budget has no room in time.
        """
        while True:
            wait = self.wait(scope)
            if wait > 0:
                raise RateLimited(math.ceil(wait))
            wait = self._budget.spend(link_id, is_poll=is_poll)
            if wait <= 0:
                return
            if time.monotonic() + wait > until:
                raise RateLimited(math.ceil(wait))
            time.sleep(wait + random.uniform(0, 0.05))

    def refused(self, scope: str, answer: HttpResponse) -> Refusal:
        """Note a 429 in response to a call of this scope, and begin the wait that it asks for."""
        seconds, quota = _wait_of(answer)
        about = "all" if quota else self._what_it_is_about(scope)
        log.error(
            "web_api_rate_limited",
            extra={"seconds": seconds, "quota": quota, "route": "all" if about == "all" else scope},
        )
        if about == "all":
            return Refusal(self._close_all(seconds))
        self._begin(scope, seconds)
        return Refusal(seconds, asks_for_canary=about == "ask" and self.wait(ME) <= 0)

    def refuses_alone(self, scope: str) -> None:
        """Note that a scope was refused while the canary was answered."""
        try:
            self._client.set(f"{self._alone_key}:{scope}", 1, ex=REFUSES_ALONE_SECONDS)
        except redis.RedisError as error:
            log.warning("gate_kept_alone", extra={"reason": type(error).__name__})

    def close(self, answer: HttpResponse) -> int:
        """Let no call be made for as long as a 429 asks. Returns the seconds."""
        seconds, quota = _wait_of(answer)
        log.error("web_api_rate_limited", extra={"seconds": seconds, "quota": quota, "route": "all"})
        return self._close_all(seconds)

    def _close_all(self, seconds: int) -> int:
        self._begin(ALL, seconds)
        self._budget.learn()
        return seconds

    def _what_it_is_about(self, scope: str) -> Literal["all", "ask", "one"]:
        now = time.monotonic()
        with self._lock:
            last, self._last_refusal = self._last_refusal, (scope, now)
        try:
            about: Any = self._refused(
                [self._refused_key, self._canary_key, f"{self._alone_key}:{scope}"],
                [scope, SECOND_REFUSAL_SECONDS * 1000, CANARY_SECONDS * 1000],
            )
        except redis.RedisError as error:
            log.warning("gate_kept_alone", extra={"reason": type(error).__name__})
            is_second = last is not None and last[0] != scope and now - last[1] < SECOND_REFUSAL_SECONDS
            return "all" if is_second else "one"
        found: Literal["all", "ask", "one"] = about.decode()
        return "one" if found == "ask" and scope == ME else found

    def _begin(self, scope: str, seconds: float) -> None:
        with self._lock:
            until = time.monotonic() + seconds
            self._until[scope] = max(self._until.get(scope, 0.0), until)
        self._tell(scope, seconds)

    def _look(self, scopes: list[str]) -> dict[str, float]:
        """The waits of these scopes: the longer of what Redis and this process know."""
        found: dict[str, float] = {}
        try:
            left: Any = self._waits([self._key_of(scope) for scope in scopes], [MAX_WAIT_SECONDS * 1000])
        except redis.RedisError as error:
            log.warning("gate_kept_alone", extra={"reason": type(error).__name__})
            left = None
        for number, scope in enumerate(scopes):
            shared = 0.0 if left is None else float(left[number]) / 1000
            found[scope] = self._reconcile(scope, shared, told=left is not None)
        return found

    def _reconcile(self, scope: str, shared: float, *, told: bool) -> float:
        now = time.monotonic()
        with self._lock:
            known = self._until.get(scope, 0.0) - now
            if shared > known:
                self._until[scope] = now + shared
            elif known <= 0:
                self._until.pop(scope, None)
        if told and known > shared + 1:
            self._tell(scope, known)
        return max(0.0, known, shared)

    def _tell(self, scope: str, seconds: float) -> None:
        try:
            self._close([self._key_of(scope)], [math.ceil(seconds * 1000)])
        except redis.RedisError as error:
            log.warning("gate_kept_alone", extra={"reason": type(error).__name__})

    def _key_of(self, scope: str) -> str:
        return f"{self._key}:{scope}" if scope else self._key


def _wait_of(answer: HttpResponse) -> tuple[int, bool]:
    """For how many seconds a 429 asks, and whether it says that the application's quota is used up."""
    error = answer.json_object().get("error")
    quota = isinstance(error, dict) and error.get("reason") == "QUOTA_EXCEEDED"
    asked = answer.retry_after
    if asked is None:
        asked = QUOTA_WAIT_SECONDS if quota else WAIT_SECONDS
    return min(max(asked, 1), MAX_WAIT_SECONDS), quota
