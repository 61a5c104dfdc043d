"""Locks in Redis, by name. They save work; correctness must not depend on them."""

import logging
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

log = logging.getLogger(__name__)


class RedisLocks:
    """Locks that expire by themselves, so a crashed holder blocks others for `lease_seconds` at most.

    A holder that outlives its lease must not write, which only the database can ensure.
    """

    def __init__(self, client: redis.Redis, *, lease_seconds: float = 30) -> None:
        self._client = client
        self._acquire_script, self._release_script = (
            Path(__file__).with_name(name).read_text(encoding="utf-8")
            for name in ("lock_acquire.lua", "lock_release.lua")
        )
        self._lease_ms = int(lease_seconds * 1000)

    @contextmanager
    def hold(self, name: str, *, timeout: float) -> Iterator[None]:
        """Hold a lock while the block runs.

        If the lock is not free within `timeout` seconds, the block runs without it. If Redis is unavailable,
        it does so immediately.
        """
        key, token = f"lock:{name}", secrets.token_hex(16)
        acquired = self._acquire(key, token, time.monotonic() + timeout)
        try:
            yield
        finally:
            if acquired:
                self._release(key, token)

    def _acquire(self, key: str, token: str, deadline: float) -> bool:
        """Acquire a lock. Returns whether to release it."""
        pause = 0.01
        while True:
            try:
                if self._client.eval(self._acquire_script, 1, key, token, self._lease_ms):
                    return True
            except redis.RedisError as error:
                log.warning("lock_skipped", extra={"reason": type(error).__name__})
                return True  # it may have been set, and only the reply was lost
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 1.5, 0.1)

    def _release(self, key: str, token: str) -> None:
        try:
            self._client.eval(self._release_script, 1, key, token)
        except redis.RedisError as error:
            log.warning("lock_not_released", extra={"reason": type(error).__name__})
