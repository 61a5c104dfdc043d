"""When to replace a pooled connection to a store instead of using it again."""

import threading
import time

# Firewalls and NATs silently drop idle connections, some of them after seconds. Reconnecting takes
# milliseconds; using a dropped connection costs a whole timeout.
IDLE_SECONDS = 3.0
# By then, a host name may lead to another server.
MAX_AGE_SECONDS = 1800.0
# If new connections fail as well, not every call should open one.
PAUSE_SECONDS = 1.0


class Staleness:
    """Decides which connections of a pool to replace.

    After a failover, existing connections lead to a server that rejects writes or is gone. So a failure
    counts against all connections that are older than it. Times are those of `time.monotonic`.
    """

    def __init__(self) -> None:
        self._failed_at = float("-inf")
        self._server: object = None
        self._lock = threading.Lock()

    def report_failure(self) -> None:
        """Distrust all existing connections, at most once every `PAUSE_SECONDS`."""
        now = time.monotonic()
        with self._lock:
            if now - self._failed_at >= PAUSE_SECONDS:
                self._failed_at = now

    def report_server(self, server: object) -> None:
        """Distrust all existing connections if a new one leads to another server than the one before.

        So at any time, all connections that are used lead to the same server.
        """
        with self._lock:
            if self._server not in (None, server):
                self._failed_at = time.monotonic()
            self._server = server

    def is_stale(self, connected_at: float, used_at: float) -> bool:
        """Return whether to replace a connection that was opened and last used at these times."""
        now = time.monotonic()
        return (
            connected_at <= self._failed_at
            or now - used_at > IDLE_SECONDS
            or now - connected_at > MAX_AGE_SECONDS
        )
