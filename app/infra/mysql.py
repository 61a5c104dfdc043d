"""MySQL and MariaDB: how connections are opened, checked before use, and replaced."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DisconnectionError, OperationalError

from app.infra import sockets
from app.infra.mysql_hosts import Hosts
from app.infra.mysql_pool import TOO_MANY_CONNECTIONS, SharingPool, error_code
from app.infra.staleness import PAUSE_SECONDS, Staleness
from app.resilience.connect_guard import ConnectGuard
from app.settings.database_url import Host
from config import Config

if TYPE_CHECKING:
    from app.infra.mysql_connection import MySqlConnection

# A pooled connection that does not respond within this is replaced.
PING_SECONDS = 1.0
# How often a connection in use is checked: does it respond, and lead to a server that accepts writes?
CHECK_SECONDS = 1.0
# How long a caller waits for another's attempt to connect while the database is down.
DOWN_SECONDS = 0.2
CONNECT_SECONDS = 2
STATEMENT_SECONDS = 4
# How long a caller waits for a connection while all of them are in use.
WAIT_SECONDS = 2.0
# Conflicts with another transaction. They say nothing about the server.
CONFLICTS = (1205, 1213, 1020, 3572)
# After 1205, MySQL rolls back one statement only, and leaving the transaction the rest. A read-only server
# rejects the COMMIT.
ROLLED_BACK = (1205, 1213, 1290, 1836)
# The disk is full. The server still accepts connections, and can be read from.
DISK_FULL = (1021, 1114)
# Another server takes over: not ready (1047), shutting down (1053), killed (1927), offline (3032), and lost.
SERVER_CHANGED = (1047, 1053, 1290, 1836, 1927, 3032, *DISK_FULL, 2006, 2013, 2055, 4031)
NO_SUCH_TABLE = 1146
# Under REPEATABLE READ, MySQL's default, selecting a missing row for update locks the gap where it would be,
# so two transactions that check before they insert deadlock. This level needs row-based or mixed binary logs,
# which are the default.
_ISOLATION = b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"

_needs_new_connection = ContextVar("needs_new_connection", default=False)


class StaleConnectionError(OperationalError):
    """A pooled connection was unusable, as its first statement showed. That statement had no effect."""


def engine_options(config: Config) -> dict[str, Any]:
    """Return the options for SQLAlchemy's `create_engine`."""
    return {
        # By default, mysqlclient waits forever, and a stalled server would block every thread. The timeout of
        # a statement is longer than that for a lock.
        "connect_args": {
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": STATEMENT_SECONDS,
            "write_timeout": STATEMENT_SECONDS,
            "init_command": "SET SESSION innodb_lock_wait_timeout=3, sql_mode='STRICT_ALL_TABLES'",
        },
        "poolclass": SharingPool,
        "pool_pre_ping": True,
        "pool_use_lifo": True,  # surplus connections become idle, and are closed
        "pool_size": config.database_pool_size,
        "max_overflow": config.database_max_overflow,
        "pool_timeout": WAIT_SECONDS,
        # Error messages must not contain data.
        "hide_parameters": True,
    }


def guard(engine: sa.Engine, hosts: Sequence[Host]) -> None:
    """Open connections to one of the hosts, check them before use, and watch for errors."""
    events = _Events(Hosts(hosts or (None,)))
    pool: Any = engine.pool
    pool.has_several_hosts = len(hosts) > 1
    event.listen(engine, "do_connect", events.connect)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", events.handle_error, retval=True)
    engine.dialect.do_ping = events.check  # type: ignore[assignment]


def use_hosts(engine: sa.Engine, hosts: Sequence[Host]) -> None:
    """Open connections to the first host that accepts writes, for an engine that is not guarded."""
    known = Hosts(hosts or (None,))

    def connect(
        dialect: sa.Dialect, _record: object, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        return known.connect(partial(_open, dialect, arguments, named), CONNECT_SECONDS)

    event.listen(engine, "do_connect", connect)


@contextmanager
def new_connection() -> Iterator[None]:
    """Let the block open a new connection instead of using one of the pool."""
    token = _needs_new_connection.set(True)
    try:
        yield
    finally:
        _needs_new_connection.reset(token)


class _Events:
    """Handlers for the events of one engine."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._connect_guard = ConnectGuard(DOWN_SECONDS, CONNECT_SECONDS + 0.5, _is_reply)
        self._staleness = Staleness()

    def connect(
        self, dialect: sa.Dialect, _record: object, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Open a connection, unless the database is down and another thread is trying.

        Raises:
            OperationalError: The attempt failed, or another thread is still trying.
        """
        busy_error = dialect.loaded_dbapi.OperationalError(2003, "another thread is trying to connect")
        open_host = partial(_open, dialect, arguments, named)
        return self._connect_guard.connect(
            lambda: self._hosts.connect(open_host, CONNECT_SECONDS), busy_error
        )

    def handle_error(self, context: ExceptionContext) -> sa.exc.DBAPIError | None:
        """Distrust all older connections after an error that may mean that another server has taken over.

        SQLAlchemy would do so by the system clock, which can be changed. `Staleness` uses a monotonic one.
        """
        error = context.original_exception
        if context.is_disconnect:
            self._report_broken()
        elif _means_wrong_server(context.dialect, error):
            context.is_disconnect = True
            self._staleness.report_failure()
            if error_code(error) in DISK_FULL:
                self._hosts.report_full_disk(_server_of(context.connection))
        context.invalidate_pool_on_disconnect = False
        if _is_stale(context):
            kind: type[OperationalError] = StaleConnectionError
        elif error_code(error) == NO_SUCH_TABLE:  # the wrong server, not a wrong statement
            kind = OperationalError
        else:
            return None
        return kind(context.statement, None, error, hide_parameters=True, connection_invalidated=True)

    def check(self, connection: "MySqlConnection") -> bool:
        """Check a pooled connection before use. Most of the time, this takes no round trip.

        Raises:
            DisconnectionError: It is stale, broken, or leads to a replica, or a preferred server is usable
                again. SQLAlchemy then replaces it.
        """
        if _needs_new_connection.get():
            raise DisconnectionError("the connection comes from the pool")
        if self._staleness.is_stale(connection.connected_at, connection.used_at):
            raise DisconnectionError("the connection is stale")
        if self._hosts.is_outranked(connection):
            raise DisconnectionError("a preferred server is usable again")
        is_due = time.monotonic() - connection.checked_at > CHECK_SECONDS
        try:
            connection.require_open()
            if is_due and not connection.is_primary(PING_SECONDS):
                self._reject_replica(connection)
        except connection.Error as error:
            # After an error of the driver, SQLAlchemy would replace the pool by the system clock.
            self._report_broken()
            raise DisconnectionError("the connection is broken") from error
        connection.is_proven = False
        return True

    def _reject_replica(self, connection: "MySqlConnection") -> None:
        # If new connections lead to a replica as well, not every call should open one.
        if time.monotonic() - connection.connected_at > PAUSE_SECONDS:
            self._staleness.report_failure()
            raise DisconnectionError("the server has become a replica")

    def _report_broken(self) -> None:
        self._connect_guard.report_failure()
        self._staleness.report_failure()


def _begin(connection: Connection) -> None:
    """Begin a transaction, unless the statements only read (`database.read`, `database.reading`)."""
    driver: Any = connection.connection.dbapi_connection
    options = connection.get_execution_options()
    if options.get("is_single_read"):
        driver.reply_seconds = None if driver.is_proven else PING_SECONDS
    elif not options.get("reads"):
        driver.begin()


def _server_of(connection: Connection | None) -> Host | None:
    driver: Any = connection.connection.dbapi_connection if connection else None
    return driver.server if driver else None


def _is_stale(context: ExceptionContext) -> bool:
    """Return whether the first statement on a pooled connection showed that the connection is unusable."""
    connection, error = context.connection, context.original_exception
    if connection is None or connection.closed or connection.invalidated:
        return False
    driver: Any = connection.connection.dbapi_connection
    return context.is_disconnect and isinstance(error, driver.Error) and not driver.is_proven


def _open(
    dialect: sa.Dialect,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    host: Host | None,
    seconds: float,
) -> "MySqlConnection":
    """Connect to a host (None: a Unix socket) within some seconds, including name lookup and all addresses.

    The driver looks up the name again, which is fast after it succeeded here.

    Raises:
        OperationalError: The host is not usable.
    """
    deadline = time.monotonic() + seconds
    if host is not None:
        # The driver's timeout is a whole number, for each address.
        timeout = max(1, round(seconds) // _count_addresses(dialect, host, deadline))
        named = named | {"host": host.name, "port": host.port, "connect_timeout": timeout}
    # Not at the top: without MySQL, its driver need not be installed.
    from app.infra.mysql_connection import MySqlConnection

    connection = MySqlConnection(*arguments, **named)
    try:
        connection.set_up(_ISOLATION, max(PING_SECONDS, deadline - time.monotonic()))
    except Exception:
        connection.close()
        raise
    connection.server = host
    return connection


def _count_addresses(dialect: sa.Dialect, host: Host, deadline: float) -> int:
    if host.name == "localhost":  # the driver uses a Unix socket
        return 1
    try:
        return len(sockets.lookup(host.name, host.port, deadline))
    except OSError as error:
        raise dialect.loaded_dbapi.OperationalError(2005, "the host's name cannot be looked up") from error


def _is_reply(error: Exception) -> bool:
    """Return whether an error is the server's own. Codes from 2000 to 2999 are the driver's."""
    code = error_code(error)
    return code >= 1000 and not 2000 <= code < 3000


def _means_wrong_server(dialect: sa.Dialect, error: BaseException) -> bool:
    """Return whether another server may have taken over: any error that is not about our statement.

    Examples are read-only (1290, 1836), not ready (1047), shutting down (1053), connection killed (1927),
    offline (3032), and access denied (1142).
    """
    driver, code = dialect.loaded_dbapi, error_code(error)
    if isinstance(error, driver.OperationalError | driver.InternalError | driver.InterfaceError):
        return code not in CONFLICTS and code not in TOO_MANY_CONNECTIONS
    return code == NO_SUCH_TABLE
