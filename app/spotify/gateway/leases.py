"""Keeps the leases of this process's cache leaders alive."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

RENEWAL_SECONDS = 1.0

T = TypeVar("T")


class LeaseRenewer(Generic[T]):
    """Renews all held leases in one thread, which ends when none are left."""

    def __init__(self, renew: Callable[[T], None]) -> None:
        self._renew = renew
        self._changed = threading.Condition()
        self._held: set[T] = set()
        self._running = False

    @contextmanager
    def hold(self, lease: T) -> Iterator[None]:
        """Renew the lease while the block runs."""
        with self._changed:
            self._held.add(lease)
            if not self._running:
                threading.Thread(target=self._renewal_loop, name="leases", daemon=True).start()
                self._running = True
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(lease)
                self._changed.notify_all()

    def _renewal_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._held, timeout=RENEWAL_SECONDS)
                if not self._held:
                    self._running = False
                    return
                leases = list(self._held)
            with suppress(Exception):
                for lease in leases:
                    self._renew(lease)
