"""Jobs that outlive the request that started them, deduplicated by key."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs jobs in background threads. Callers that start a job that is already running share its result.

    The process does not exit before the running jobs have ended, because `ThreadPoolExecutor` waits for them.

    Args:
        threads: How many jobs can run at the same time. Others are queued.
        name: The prefix of the threads' names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._running: dict[Hashable, Future[T]] = {}
        # Reentrant: if a job ends before its callback is added, the calling thread runs `_forget`.
        self._lock = threading.RLock()

    def start(self, key: Hashable, work: Callable[[], T]) -> Future[T]:
        """Start `work`, unless a job with this key is queued or running. Returns the future of either."""
        with self._lock:
            running = self._running.get(key)
            if running is None:
                running = self._running[key] = self._pool.submit(work)
                running.add_done_callback(lambda _: self._forget(key))
            return running

    def close(self) -> None:
        """Wait for the queued and running jobs, and accept no more."""
        self._pool.shutdown()

    def _forget(self, key: Hashable) -> None:
        with self._lock:
            del self._running[key]
