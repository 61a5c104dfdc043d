"""Whether the Web API may be called at all: Spotify counts calls by client id, so all processes share this.

A 429 closes the gate for everybody until its `Retry-After` is over. Nobody sleeps on it: who comes
meanwhile is told at once how long it will be.

Source: https://developer.spotify.com/documentation/web-api/concepts/rate-limits
"""

import logging
import math
import time
import uuid
from typing import Any

import redis

from app.outbound import Answer
from app.spotify.accounts import RateLimited
from config import Config

log = logging.getLogger(__name__)

# Where a 429 does not say how long: Spotify counts over 30 seconds, and its quotas over about a day.
WAIT_SECONDS, QUOTA_WAIT_SECONDS = 30, 3600
MAX_WAIT_SECONDS = 86_400
# Of the budget, what polls may use. The rest is for what somebody clicks on.
POLLS_SHARE = 0.8
BUDGET_SECONDS = 30
# What one link may use, whatever the budget: four calls a second, shared ones not counted. Or a single
# person could close the gate for everybody.
BUDGET_OF_ONE = 120

# Only ever longer: a 429 that was under way says less than the one that closed the gate.
_CLOSE = """
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
"""

# Counts a call, if the last 30 seconds have room for it: 0. Otherwise the milliseconds until they may have.
_SPEND = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], now, ARGV[3])
  redis.call('PEXPIRE', KEYS[1], window)
  return 0
end
return math.max(1, redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] + window - now)
"""


class Gate:
    """Stands in Redis, and in the memory of each process that has met it: a Redis that was restarted
    empty is told again by the first of them that asks."""

    def __init__(self, client: redis.Redis, config: Config) -> None:
        self._client = client
        self._wait_key = f"spotify-wait:{config.spotify_client_id}"
        self._budget_key = f"spotify-budget:{config.spotify_client_id}"
        self._calls_key = f"spotify-calls:{config.spotify_client_id}"
        self._budget = config.gateway_budget
        self._until = 0.0  # `time.monotonic`

    def wait(self) -> float:
        """How many seconds nobody may call; 0 where the gate is open."""
        known, shared = self._until - time.monotonic(), 0.0
        try:
            left: Any = self._client.pttl(self._wait_key)
            shared = max(0.0, float(left) / 1000)
            if known > shared + 1:
                self._tell(known)
        except redis.RedisError as error:
            log.warning("gate_kept_alone", extra={"reason": type(error).__name__})
        if shared > known:
            self._until = time.monotonic() + shared
        return max(0.0, known, shared)

    def pass_or_refuse(self, link_id: int | None, *, is_poll: bool) -> None:
        """Let a call through, and count it; `link_id` is whose it is, if there is a link yet.

        Raises:
            RateLimited: the gate is closed, or a budget is used up.
        """
        wait = self.wait()
        if wait <= 0 and link_id is not None:
            wait = self._spend(f"{self._calls_key}:{link_id}", BUDGET_OF_ONE)
        if wait <= 0 and self._budget:
            wait = self._spend(self._budget_key, max(1, int(self._budget * (POLLS_SHARE if is_poll else 1))))
        if wait > 0:
            raise RateLimited(math.ceil(wait))

    def close(self, answer: Answer) -> int:
        """Close it for as long as a 429 asks. Returns the seconds."""
        quota = answer.json_object().get("error")
        exhausted = isinstance(quota, dict) and quota.get("reason") == "QUOTA_EXCEEDED"
        asked = answer.retry_after
        if asked is None:
            asked = QUOTA_WAIT_SECONDS if exhausted else WAIT_SECONDS
        seconds = min(max(asked, 1), MAX_WAIT_SECONDS)
        log.error("web_api_rate_limited", extra={"seconds": seconds, "quota": exhausted})
        self._until = max(self._until, time.monotonic() + seconds)
        try:
            self._tell(seconds)
        except redis.RedisError as error:
            log.warning("gate_kept_alone", extra={"reason": type(error).__name__})
        return seconds

    def _tell(self, seconds: float) -> None:
        self._client.eval(_CLOSE, 1, self._wait_key, str(math.ceil(seconds * 1000)))

    def _spend(self, key: str, most: int) -> float:
        try:
            left: Any = self._client.eval(
                _SPEND, 1, key, str(most), str(BUDGET_SECONDS * 1000), uuid.uuid4().hex
            )
        except redis.RedisError as error:
            # It is ours, not Spotify's: without it Spotify itself says when it is enough.
            log.warning("budget_not_counted", extra={"reason": type(error).__name__})
            return 0
        return float(left) / 1000
