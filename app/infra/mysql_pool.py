"""A pool for a database server that accepts fewer connections than the pool may have."""

import random
import threading
import time
import weakref
from contextlib import suppress
from typing import Any, cast

from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty

from app.infra.staleness import IDLE_SECONDS

# Server-wide and per user; 1226 also stands for hourly limits.
TOO_MANY_CONNECTIONS = (1040, 1203, 1226)
# For this long after the server had too many connections, processes share those there are.
SCARCE_SECONDS = 5.0
# How long a process may keep one of them then.
SHARE_SECONDS = 1.0
SWEEP_SECONDS = 0.5


def error_code(error: BaseException | None) -> int:
    """Return the server's or the driver's number for an error; 0 if it has none."""
    code = error.args[0] if error is not None and error.args else 0
    return code if isinstance(code, int) else 0


class SharingPool(QueuePool):
    """Waits when the server has too many connections, and closes those that are not needed.

    Callers wait for a connection of this process to be returned, or for the server to accept one more,
    whichever comes first. The limit is shared with other processes, so while connections are scarce none
    is kept for longer than a second, and idle ones are closed at all times. Connections have
    `connected_at` and `used_at` (`time.monotonic`), which `app.infra.mysql` sets.
    """

    # SQLAlchemy's own name for its logger, so that its notes about each connection stay out of our log.
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._scarce_until = 0.0
        self._turn = threading.Lock()  # to ask the server for one more, while connections are scarce
        self._sweeper: threading.Thread | None = None

    def connect(self) -> PoolProxiedConnection:
        """Take a connection. While the server accepts no more, wait for one."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return super().connect()
            except cast("Dialect", self._dialect).loaded_dbapi.OperationalError as error:
                if error_code(error) not in TOO_MANY_CONNECTIONS or time.monotonic() > deadline:
                    raise
                self._scarce_until = time.monotonic() + SCARCE_SECONDS

    def _do_get(self) -> ConnectionPoolEntry:
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < min(deadline, self._scarce_until):
            with suppress(Empty):
                return self._pool.get(True, random.uniform(0.01, 0.05))
            if self._turn.acquire(blocking=False):
                try:
                    return super()._do_get()
                finally:
                    self._turn.release()
        return super()._do_get()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._is_unwanted(record):
            self._close(record)
            return
        super()._do_return_conn(record)
        if self._sweeper is None or not self._sweeper.is_alive():
            self._sweeper = threading.Thread(target=_sweep, args=(weakref.ref(self),), daemon=True)
            self._sweeper.start()

    def _is_unwanted(self, record: ConnectionPoolEntry) -> bool:
        """Whether to close a connection that is returned: it is broken, or it is another process's turn."""
        connection: Any = record.dbapi_connection
        if connection is None:
            return True
        now = time.monotonic()
        return now < self._scarce_until and now - connection.connected_at > SHARE_SECONDS

    def close_idle(self) -> bool:
        """Close connections that have been idle for some seconds. Return whether any are left."""
        queue: Any = self._pool
        with queue.mutex:
            idle = [record for record in queue.queue if _rests(record)]
            for record in idle:
                queue.queue.remove(record)
            is_empty = not queue.queue
            if is_empty:
                self._sweeper = None
        for record in idle:
            self._close(record)
        return not is_empty

    def _close(self, record: ConnectionPoolEntry) -> None:
        try:
            record.close()
        finally:
            self._dec_overflow()


def _sweep(pool: "weakref.ref[SharingPool]") -> None:
    while (found := pool()) is not None and found.close_idle():
        del found
        time.sleep(SWEEP_SECONDS)


def _rests(record: ConnectionPoolEntry) -> bool:
    connection: Any = record.dbapi_connection
    return connection is None or time.monotonic() - connection.used_at > IDLE_SECONDS
