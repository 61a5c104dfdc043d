"""A per-user lock in Redis: it saves calls and waiting. Nothing may depend on it for correctness."""

import logging
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

log = logging.getLogger(__name__)

# Takes the lock if it is free, or if it would be held for longer than any of ours: then it is not one,
# or was set before Redis' clock went back.
_ACQUIRE = """
if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
local left = redis.call('pttl', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# Deletes the lock only if it is still ours: after a lease ran out it may be somebody else's.
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class RedisLocks:
    """Leases in Redis, one per link.

    The lease runs out on its own, so a crashed holder blocks its user for `lease_seconds` at
    most. A holder that outlives its lease must not write: every write is guarded by the grant's
    generation, in the database.
    """

    def __init__(self, client: redis.Redis, *, lease_seconds: float = 30) -> None:
        self._client = client
        self._lease_ms = int(lease_seconds * 1000)

    @contextmanager
    def hold(self, link_id: int, *, patience: float) -> Iterator[None]:
        """Hold the lock of a link, or go on without it when it was not to be had in `patience` seconds.

        Without Redis nobody holds it, and everybody goes on at once.
        """
        key, token = f"lock:link:{link_id}", secrets.token_hex(16)
        held = self._acquire(key, token, time.monotonic() + patience)
        try:
            yield
        finally:
            if held:
                self._release(key, token)

    def _acquire(self, key: str, token: str, deadline: float) -> bool:
        pause = 0.01
        while True:
            try:
                if self._client.eval(_ACQUIRE, 1, key, token, str(self._lease_ms)):
                    return True
            except redis.RedisError as error:
                log.warning("lock_skipped", extra={"reason": type(error).__name__})
                # It may have been set all the same, its answer lost on the way: so it is given back.
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 1.5, 0.1)

    def _release(self, key: str, token: str) -> None:
        try:
            self._client.eval(_RELEASE, 1, key, token)
        except redis.RedisError as error:
            # The lease ends by itself; the work that was done under it stands.
            log.warning("lock_not_released", extra={"reason": type(error).__name__})
