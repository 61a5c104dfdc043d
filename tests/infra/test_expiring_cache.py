"""ExpiringCache: bounded, and nothing stays in it for long."""

import time
from unittest.mock import patch

from app.infra.expiring_cache import ExpiringCache


def test_value_expires() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(10, 60)
    cache.put("a", 1)
    now = time.monotonic()

    with patch("time.monotonic", return_value=now + 59):
        assert cache.get("a") == 1
    with patch("time.monotonic", return_value=now + 61):
        assert cache.get("a") is None


def test_replaced_value_starts_again() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(10, 60)
    now = time.monotonic()
    cache.put("a", 1)

    with patch("time.monotonic", return_value=now + 50):
        cache.put("a", 2)
    with patch("time.monotonic", return_value=now + 100):
        assert cache.get("a") == 2


def test_oldest_value_makes_room() -> None:
    cache: ExpiringCache[int, int] = ExpiringCache(3, 60)
    for number in (1, 2, 3, 1, 4):
        cache.put(number, number)

    assert [cache.get(number) for number in (1, 2, 3, 4)] == [1, None, 3, 4]


def test_expired_values_are_removed_when_another_is_added() -> None:
    cache: ExpiringCache[int, int] = ExpiringCache(1000, 60)
    for number in range(100):
        cache.put(number, number)

    with patch("time.monotonic", return_value=time.monotonic() + 61):
        cache.put(100, 100)

    assert len(cache) == 1


def test_removed_value_is_gone() -> None:
    cache: ExpiringCache[str, int] = ExpiringCache(10, 60)
    cache.put("a", 1)

    cache.remove("a")
    cache.remove("a")

    assert cache.get("a") is None
