"""A rate limiter that all processes share."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import redis

log = logging.getLogger(__name__)


class RateLimiter:
    """Reserves evenly spaced slots in Redis. Without Redis, each process spaces only its own.

    Args:
        client: The Redis client.
        key: The key of this limit in Redis.
        rate: Slots per second.
    """

    def __init__(self, client: redis.Redis, key: str, rate: int) -> None:
        self._client = client
        self._reserve = Path(__file__).with_name("rate_limiter_reserve.lua").read_text(encoding="utf-8")
        self._key = key
        self._interval = 1 / rate
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def reserve(self, count: int = 1) -> float:
        """Reserve the next slots. Returns in how many seconds the first is. Unused slots are lost."""
        try:
            microseconds = round(self._interval * 1_000_000)
            delay: Any = self._client.eval(self._reserve, 1, self._key, microseconds, count)
            return int(delay) / 1_000_000
        except (redis.RedisError, ValueError) as error:
            log.warning("rate_limit_per_process", extra={"reason": type(error).__name__})
        with self._lock:
            now = time.monotonic()
            slot = max(self._next, now)
            self._next = slot + count * self._interval
            return slot - now
