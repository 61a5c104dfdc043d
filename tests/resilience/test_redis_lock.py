"""RedisLocks: locks that expire by themselves."""

import pytest
import redis

from app.resilience.redis_lock import RedisLocks


@pytest.mark.parametrize("expires_in", [None, 3600], ids=["never", "in an hour"])
def test_lock_that_outlives_a_lease_is_taken_over(store: redis.Redis, expires_in: int | None) -> None:
    store.set("lock:report", "someone", ex=expires_in)

    with RedisLocks(store).hold("report", timeout=0):
        assert store.get("lock:report") != b"someone"
        assert 0 < store.pttl("lock:report") <= 30_000

    assert not store.exists("lock:report")


def test_lock_of_another_caller_is_left_alone(store: redis.Redis) -> None:
    store.set("lock:report", "someone", px=30_000)

    with RedisLocks(store).hold("report", timeout=0):
        assert store.get("lock:report") == b"someone"

    assert store.get("lock:report") == b"someone"
