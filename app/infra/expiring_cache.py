"""A small cache in memory: bounded, and nothing stays in it for long."""

import threading
import time
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class ExpiringCache(Generic[Key, Value]):
    """Values by key, each for the same number of seconds. Threads may share it.

    When it is full, the oldest make room. Expired ones are removed whenever something is added, so that
    people's data is not kept for longer than it is used.
    """

    def __init__(self, max_entries: int, seconds: float) -> None:
        self._max_entries = max_entries
        self._seconds = seconds
        self._entries: dict[Key, tuple[float, Value]] = {}  # oldest first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return a value, unless it has expired."""
        entry = self._entries.get(key)
        if entry is None or time.monotonic() - entry[0] >= self._seconds:
            return None
        return entry[1]

    def put(self, key: Key, value: Value) -> None:
        """Add or replace a value."""
        now = time.monotonic()
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = now, value
            while True:
                oldest = next(iter(self._entries))
                is_expired = now - self._entries[oldest][0] >= self._seconds
                if not is_expired and len(self._entries) <= self._max_entries:
                    return
                del self._entries[oldest]

    def remove(self, key: Key) -> None:
        """Remove a value, if there is one."""
        with self._lock:
            self._entries.pop(key, None)
