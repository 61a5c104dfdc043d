"""A bound on how often something is done, by all processes together."""

import logging
import threading
import time
from typing import Any

import redis

log = logging.getLogger(__name__)

# Takes the next free turn and returns how far away it is, both in microseconds. By Redis' clock,
# so the hosts' own do not matter; a turn that nobody comes for is lost, nothing more. A turn more
# than a minute away is of another time: Redis' clock was set back, or it is another Redis.
_NEXT_TURN = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local turn = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
if not (turn <= now + 60000000) then turn = now end
redis.call('SET', KEYS[1], string.format('%.0f', turn + ARGV[1]), 'PX', 60000)
return string.format('%.0f', turn - now)
"""


class RateLimiter:
    """Spreads turns evenly: at most `rate` a second.

    The turns of all processes are counted in Redis. Without it each process counts its own.
    """

    def __init__(self, client: redis.Redis, key: str, rate: int) -> None:
        self._client = client
        self._key = key
        self._interval = 1 / rate
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def reserve(self) -> float:
        """Take a turn. Returns how many seconds it is away."""
        try:
            away: Any = self._client.eval(_NEXT_TURN, 1, self._key, str(round(self._interval * 1_000_000)))
            return int(away) / 1_000_000
        except (redis.RedisError, ValueError) as error:
            log.warning("rate_limit_per_process", extra={"reason": type(error).__name__})
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._interval
            return turn - time.monotonic()
