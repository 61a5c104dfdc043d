"""Work that goes on whoever asked for it goes away, one of a kind at a time."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs work in threads of its own. Who asks for what is under way joins it.

    The process ends when its running work has ended, as `ThreadPoolExecutor` sees to it.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._running: dict[Hashable, Future[T]] = {}
        # Reentrant: work that is done at once is forgotten by the thread that started it.
        self._lock = threading.RLock()

    def start(self, key: Hashable, work: Callable[[], T]) -> Future[T]:
        """Start the work, unless work under this key is running. Returns the result to come."""
        with self._lock:
            running = self._running.get(key)
            if running is None:
                running = self._running[key] = self._pool.submit(work)
                running.add_done_callback(lambda _: self._forget(key))
            return running

    def close(self) -> None:
        """Wait for what is running; take no more."""
        self._pool.shutdown()

    def _forget(self, key: Hashable) -> None:
        with self._lock:
            del self._running[key]
