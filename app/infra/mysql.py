"""MySQL and MariaDB: how connections are made, checked before use, and given up."""

import select
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError, OperationalError

from app.infra import sockets
from app.infra.mysql_pool import TOO_MANY_CONNECTIONS, SharingPool, error_code
from app.infra.staleness import PAUSE_SECONDS, Staleness
from app.resilience.connect_guard import ConnectGuard
from config import Config

# A pooled connection that does not answer within this is given up.
PING_SECONDS = 1.0
# How long a caller waits for another one's attempt to connect while the database is down.
DOWN_SECONDS = 0.2
CONNECT_SECONDS = 2
# How long a caller waits for a connection while all that we may have are in use.
WAIT_SECONDS = 5.0
# Another transaction got in the way; the server is the right one.
CONFLICTS = (1205, 1213, 1020, 3572)
NO_SUCH_TABLE = 1146


def engine_options(config: Config) -> dict[str, Any]:
    """Return the options for SQLAlchemy's `create_engine`."""
    return {
        # mysqlclient waits forever unless told otherwise: a stalled server would take every thread.
        # A statement waits longer than for a lock; one that was cut off and a connect after it, 6 s.
        "connect_args": {
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": 4,
            "write_timeout": 4,
            "init_command": "SET SESSION innodb_lock_wait_timeout=3, sql_mode='STRICT_ALL_TABLES'",
        },
        # Under REPEATABLE READ, MySQL's default, looking for a row that is not there yet locks the
        # gap it would go into: two who look before they insert deadlock. It needs row-based or mixed
        # binary logs, which are the default.
        "isolation_level": "READ COMMITTED",
        "poolclass": SharingPool,
        "pool_pre_ping": True,
        "pool_use_lifo": True,  # connections that are not needed rest, and are closed
        "pool_size": config.database_pool_size,
        "max_overflow": config.database_max_overflow,
        "pool_timeout": WAIT_SECONDS,
        # An error message must never quote a row.
        "hide_parameters": True,
    }


def guard(engine: sa.Engine) -> None:
    """Connect through a `ConnectGuard`, examine errors, and check pooled connections before use."""
    events = _Events()
    event.listen(engine, "do_connect", events.connect)
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "handle_error", events.examine, retval=True)
    engine.dialect.do_ping = events.ping  # type: ignore[assignment]


class _Events:
    def __init__(self) -> None:
        self._connect_guard = ConnectGuard(DOWN_SECONDS, CONNECT_SECONDS + 0.5, _is_answer)
        self._staleness = Staleness()

    def connect(
        self, dialect: sa.Dialect, _record: object, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Open a connection, unless the database is down and another thread is trying."""
        refusal = dialect.loaded_dbapi.OperationalError(2003, "another thread is trying to connect")
        connection = self._connect_guard.connect(lambda: _open(dialect, arguments, named), refusal)
        connection.connected_at = connection.used_at = time.monotonic()
        return connection

    def examine(self, context: ExceptionContext) -> sa.exc.DBAPIError | None:
        """Give up all older connections after an error that may mean that the server is the wrong one.

        SQLAlchemy would do so by a clock that may be set; `Staleness` measures elapsed time.
        """
        error = context.original_exception
        if context.is_disconnect:
            self._connect_guard.report_failure()
            self._staleness.report_failure()
        elif _means_wrong_server(context.dialect, error):
            context.is_disconnect = True
            self._staleness.report_failure()
        context.invalidate_pool_on_disconnect = False
        if error_code(error) == NO_SUCH_TABLE:  # a server without our tables, not a faulty statement
            return OperationalError(context.statement, None, error, hide_parameters=True)
        return None

    def ping(self, connection: Any) -> bool:
        """Check a pooled connection before use.

        Raises:
            DisconnectionError: SQLAlchemy replaces it.
        """
        if self._staleness.is_stale(connection.connected_at, connection.used_at):
            raise DisconnectionError("the connection is too old, or was idle for too long")
        try:
            is_primary = _ping(connection)
        except connection.Error as error:
            # As an error of the driver, SQLAlchemy would give up the pool by a clock that may be set.
            self._connect_guard.report_failure()
            self._staleness.report_failure()
            raise DisconnectionError("the connection no longer answers") from error
        if not is_primary and time.monotonic() - connection.connected_at > PAUSE_SECONDS:
            self._staleness.report_failure()
            raise DisconnectionError("the server has become a replica")
        return True


def _note_use(connection: Any, _record: object) -> None:
    if connection is not None:
        connection.used_at = time.monotonic()


def _open(dialect: sa.Dialect, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Connect, with name lookup and all addresses in the time for connecting.

    The driver looks the name up once more. That is quick after it has worked here.
    """
    host = named.get("host", "localhost")
    if host != "localhost" and "unix_socket" not in named:
        try:
            addresses = sockets.lookup(host, named.get("port", 3306), time.monotonic() + CONNECT_SECONDS)
        except OSError as error:
            raise dialect.loaded_dbapi.OperationalError(
                2005, "the host's name cannot be looked up"
            ) from error
        named["connect_timeout"] = max(1, CONNECT_SECONDS // len(addresses))  # the driver's is for each
    return dialect.connect(*arguments, **named)


def _is_answer(error: Exception) -> bool:
    """Whether the server itself refused the connection. Numbers from 2000 to 2999 are the driver's."""
    code = error_code(error)
    return code >= 1000 and not 2000 <= code < 3000


def _means_wrong_server(dialect: sa.Dialect, error: BaseException) -> bool:
    """Whether another server may be the right one by now: any failure that is not about our statement.

    Read-only (1290, 1836), not ready (1047), shutting down (1053), connection killed (1927), offline
    (3032), no longer allowed (1142), and so on.
    """
    driver, code = dialect.loaded_dbapi, error_code(error)
    if isinstance(error, driver.OperationalError | driver.InternalError | driver.InterfaceError):
        return code not in CONFLICTS and code not in TOO_MANY_CONNECTIONS
    return code == NO_SUCH_TABLE


def _ping(connection: Any) -> bool:
    """Check that a connection answers in time. Returns whether its server accepts writes.

    The driver's own ping would wait for `read_timeout`.
    """
    connection.send_query(b"SELECT @@GLOBAL.read_only")
    answer = select.poll()
    answer.register(connection.fileno(), select.POLLIN)
    if not answer.poll(PING_SECONDS * 1000):
        raise connection.OperationalError(2013, "no answer to a ping")
    connection.read_query_result()
    [[read_only]] = connection.store_result().fetch_row()
    return read_only in (0, b"0", "0", b"OFF", "OFF")
