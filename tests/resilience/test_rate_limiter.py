"""RateLimiter: evenly spaced slots for all processes together."""

import time

import pytest
import redis

from app.infra.redis_client import redis_client
from app.resilience.rate_limiter import RateLimiter


def test_rate_limit_applies_to_all_processes_together(store: redis.Redis) -> None:
    limiters = [RateLimiter(store, "limit", rate=5), RateLimiter(store, "limit", rate=5)]
    assert_slots_are_spaced(limiters)


def assert_slots_are_spaced(limiters: list[RateLimiter]) -> None:
    """Assert that the eleventh slot is two seconds after the first one, however long this takes."""
    began = time.monotonic()
    delays = [limiters[number % len(limiters)].reserve() for number in range(11)]

    assert delays[0] == 0
    assert delays[10] <= 2.0 < time.monotonic() - began + delays[10] + 0.01


def test_rate_limiter_ignores_slot_far_ahead(store: redis.Redis) -> None:
    """Redis' clock was set back, or another Redis took over."""
    store.set("limit", f"{(time.time() + 600) * 1_000_000:.0f}")

    assert RateLimiter(store, "limit", rate=5).reserve() == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon", "9" * 400])
def test_rate_limiter_ignores_invalid_value_in_redis(store: redis.Redis, value: str) -> None:
    store.set("limit", value)

    assert RateLimiter(store, "limit", rate=5).reserve() == pytest.approx(0, abs=0.01)


def test_rate_limiter_works_per_process_without_redis() -> None:
    assert_slots_are_spaced([RateLimiter(redis_client("redis://127.0.0.1:1/0"), "limit", rate=5)])
