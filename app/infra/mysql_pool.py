"""A connection pool for a server that may accept fewer connections than the pool is allowed to open."""

import random
import threading
import time
import weakref
from contextlib import suppress
from typing import Any, cast

from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty

from app.infra.pool_metrics import count_wait
from app.infra.staleness import IDLE_SECONDS

# Server-wide and per user. 1226 also stands for hourly limits.
TOO_MANY_CONNECTIONS = (1040, 1203, 1226)
# For this long after the server rejected a connection, processes share the existing ones.
SCARCE_SECONDS = 5.0
# How long a process may keep one of them during that time.
SHARE_SECONDS = 1.0
SWEEP_SECONDS = 0.5


def error_code(error: BaseException | None) -> int:
    """Return the error code of the server or the driver; 0 if there is none."""
    code = error.args[0] if error is not None and error.args else 0
    return code if isinstance(code, int) else 0


class SharingPool(QueuePool):
    """Waits while the server has too many connections, and closes idle ones.

    Callers wait until a connection of this process is returned or the server accepts another one. Processes
    share the server's limit: while connections are scarce, none is kept for longer than a second, and idle
    ones are always closed. `app.infra.mysql` sets `connected_at` and `used_at` of each connection
    (`time.monotonic`).

    Attributes:
        has_several_hosts: Whether another server can take over. If so, a connection is also checked while all
            are idle: a host that fails may have had Redis as well, without which no request gets this far.
    """

    # SQLAlchemy's own name for its logger. With another one, our log would get a line for each connection.
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"
    has_several_hosts = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._scarce_until = 0.0
        self._waiting = threading.local()  # `until`: when this thread gives up
        self._open_lock = threading.Lock()  # held to open another connection while they are scarce
        self._sweeper: threading.Thread | None = None

    def connect(self) -> PoolProxiedConnection:
        """Check out a connection. While the server accepts no more, wait for one.

        Raises:
            OperationalError: The server is unavailable, or accepted none in time.
            TimeoutError: All connections that this process may open were in use.
        """
        self._waiting.until = deadline = time.monotonic() + self._timeout
        while True:
            try:
                return super().connect()
            except cast("Dialect", self._dialect).loaded_dbapi.OperationalError as error:
                if error_code(error) not in TOO_MANY_CONNECTIONS or time.monotonic() > deadline:
                    raise
                self._scarce_until = time.monotonic() + SCARCE_SECONDS

    def _do_get(self) -> ConnectionPoolEntry:
        deadline: float = self._waiting.until
        if self._pool.empty() and (self._is_full() or deadline < self._scarce_until):
            count_wait("mysql")
        while (now := time.monotonic()) < deadline:
            is_scarce = now < self._scarce_until
            if not is_scarce and not self._is_full():
                break
            # Wait in slices: a connection that is closed, and not returned, wakes no one.
            pause = random.uniform(0.01, 0.05) if is_scarce else 0.1
            with suppress(Empty):
                return self._pool.get(True, min(pause, deadline - now))
            if is_scarce and not self._is_full() and self._open_lock.acquire(blocking=False):
                try:
                    return super()._do_get()
                finally:
                    self._open_lock.release()
        if self._is_full():
            with suppress(Empty):
                return self._pool.get(False)
            raise PoolTimeoutError("all connections to the database are in use")
        return super()._do_get()

    def _is_full(self) -> bool:
        return self._overflow >= self._max_overflow

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._is_unwanted(record):
            self._close(record)
            return
        super()._do_return_conn(record)
        if self._sweeper is None or not self._sweeper.is_alive():
            self._sweeper = threading.Thread(target=_sweep, args=(weakref.ref(self),), daemon=True)
            self._sweeper.start()

    def _is_unwanted(self, record: ConnectionPoolEntry) -> bool:
        """Return whether to close a returned connection: it is broken, or another process may need it."""
        connection: Any = record.dbapi_connection
        if connection is None:
            return True
        now = time.monotonic()
        return now < self._scarce_until and now - connection.connected_at > SHARE_SECONDS

    def close_idle(self) -> bool:
        """Close connections that were idle for some seconds. Returns whether any are left."""
        queue: Any = self._pool
        with queue.mutex:
            idle = [record for record in queue.queue if _is_idle(record)]
            for record in idle:
                queue.queue.remove(record)
            is_empty = not queue.queue
            if is_empty:
                self._sweeper = None
        for record in idle:
            self._close(record)
        return not is_empty

    def check_idle(self) -> None:
        """Check out the connection that is used next, so that it is replaced if its server has failed."""
        queue: Any = self._pool
        with queue.mutex:
            connection = queue.queue[-1].dbapi_connection if queue.queue else None
        if self.has_several_hosts and connection is not None:
            connection.checked_at = float("-inf")
            with suppress(Exception):  # the next request finds out
                self.connect().close()

    def _close(self, record: ConnectionPoolEntry) -> None:
        try:
            record.close()
        finally:
            self._dec_overflow()


def _sweep(pool: "weakref.ref[SharingPool]") -> None:
    while True:
        time.sleep(SWEEP_SECONDS)
        if (found := pool()) is None or not found.close_idle():
            break
        found.check_idle()
        del found


def _is_idle(record: ConnectionPoolEntry) -> bool:
    connection: Any = record.dbapi_connection
    return connection is None or time.monotonic() - connection.used_at > IDLE_SECONDS
