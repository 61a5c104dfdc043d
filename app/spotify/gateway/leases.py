"""Keeps the leases of this process's cache leaders alive."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

RENEWAL_SECONDS = 1.0

T = TypeVar("T")


class LeaseRenewer(Generic[T]):
    """Renews all held leases in one thread, which ends when it finds none left.

    Most leases are not held for long enough to be renewed, so there is no thread for each of them.
    """

    def __init__(self, renew: Callable[[T], None]) -> None:
        self._renew = renew
        self._lock = threading.Lock()
        self._held: set[T] = set()
        self._running = False

    @contextmanager
    def hold(self, lease: T) -> Iterator[None]:
        """Renew the lease while the block runs."""
        with self._lock:
            self._held.add(lease)
            if not self._running:
                threading.Thread(target=self._renewal_loop, name="leases", daemon=True).start()
                self._running = True
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(lease)

    def _renewal_loop(self) -> None:
        while True:
            time.sleep(RENEWAL_SECONDS)
            with self._lock:
                leases = list(self._held)
                if not leases:
                    self._running = False
                    return
            with suppress(Exception):
                for lease in leases:
                    self._renew(lease)
