"""When to replace a pooled connection to a store instead of using it again."""

import threading
import time

# Firewalls and NATs forget idle connections without telling either side, some after seconds. Connecting
# again costs milliseconds; sending into a forgotten connection costs a whole timeout.
IDLE_SECONDS = 3.0
# The name of a server may point to another one meanwhile.
MAX_AGE_SECONDS = 1800.0
# A failure that new connections have too must not cost a new connection for every call.
PAUSE_SECONDS = 1.0


class Staleness:
    """One pool's knowledge of which of its connections lead to the right server.

    After a failover, old connections lead to a server that refuses writes or has gone. The first failure
    is evidence against all connections that are older than it. Times are `time.monotonic`.
    """

    def __init__(self) -> None:
        self._failed_at = float("-inf")
        self._lock = threading.Lock()

    def report_failure(self) -> None:
        """Distrust all connections made so far; at most once in `PAUSE_SECONDS`."""
        now = time.monotonic()
        with self._lock:
            if now - self._failed_at >= PAUSE_SECONDS:
                self._failed_at = now

    def is_stale(self, connected_at: float, used_at: float) -> bool:
        """Whether to replace a connection that was made and last used at these times."""
        now = time.monotonic()
        return (
            connected_at <= self._failed_at
            or now - used_at > IDLE_SECONDS
            or now - connected_at > MAX_AGE_SECONDS
        )
