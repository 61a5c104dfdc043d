"""A connection to MySQL or MariaDB that spends no round trip on anything but statements and COMMIT."""

import select
import time
from typing import Any

from MySQLdb import InternalError, OperationalError, ProgrammingError
from MySQLdb.connections import Connection

from app.settings.database_url import Host

_COMMANDS_OUT_OF_SYNC = 2014
_SERVER_LOST = 2013
_NOT_READY = 1047

_READ_ONLY = b"SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only"
_GALERA = b"SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_cluster_status')"
_MEMBER = {"ON", "Primary"}
# By its status, a node that left because of an error looks like a server that is no node. MySQL has no such
# variable.
_IS_NODE = b"SHOW GLOBAL VARIABLES LIKE 'wsrep_on'"
_HAS_LEFT = "the node has left its cluster"
# Wait until this node has everything that was committed on others. Otherwise, a caller that comes from
# another node may not see what it has committed there. Only MariaDB has this syntax.
_CATCH_UP = b"SET STATEMENT wsrep_sync_wait = 1 FOR SELECT 1"


class MySqlConnection(Connection):  # type: ignore[misc]  # it has no types
    """A connection in autocommit mode. BEGIN is sent together with the first statement of a transaction.

    So a single read takes one round trip, and a transaction one for each statement and one for COMMIT. By
    default, the driver turns autocommit off: even a read then needs a COMMIT, and locks the tables'
    definitions until then. See docs/decisions/0062-begin-with-the-first-statement.md.
    """

    reply_seconds: float | None = None
    """How long the next statement may wait for a reply, outside a transaction. None: `read_timeout`."""
    is_proven = True
    """Whether a statement has succeeded since the connection was taken from the pool."""
    server: Host | None = None
    """Where it leads. None: to a Unix socket."""
    accepts_writes = True
    """Whether the server was neither a replica nor in maintenance when the connection was opened."""
    _begins = _is_in_transaction = _has_failed = _is_galera = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, autocommit=True, **options)
        self.connected_at = self.used_at = self.checked_at = time.monotonic()

    def begin(self) -> None:
        """Begin a transaction with the next statement."""
        self._begins = True

    def query(self, query: bytes) -> None:
        """Execute a statement.

        Raises:
            OperationalError: The server rejected it, or the connection is broken.
            ProgrammingError: An earlier statement of this transaction failed. The server may have rolled it
                back already, so this statement would be committed on its own.
        """
        self._require_intact()
        begins, self._begins = self._begins, False
        seconds, self.reply_seconds = self.reply_seconds, None
        self._is_in_transaction = self._is_in_transaction or begins
        try:
            if begins:
                self._begin_with(query)
            else:
                self._query_within(query, seconds)
        except (OperationalError, InternalError):
            self._has_failed = self._is_in_transaction
            raise

    def store_result(self) -> Any:
        """Return the rows of a statement, if it has any. Cursors call this after each one.

        Raises:
            OperationalError: The server stopped with an error after some rows, or the connection is broken.
        """
        try:
            rows = super().store_result()
        except (OperationalError, InternalError):
            self._has_failed = self._is_in_transaction
            raise
        self.is_proven, self.used_at = True, time.monotonic()
        return rows

    def commit(self) -> None:
        """Commit the transaction, if there is one.

        Raises:
            OperationalError: It may or may not have been committed.
            ProgrammingError: A statement failed, so this would commit half of the transaction.
        """
        self._require_intact()
        if self._is_in_transaction:
            super().commit()
        self._begins = self._is_in_transaction = False

    def rollback(self) -> None:
        """Roll back the transaction, if there is one."""
        if self._is_in_transaction:
            super().rollback()
        self._begins = self._is_in_transaction = self._has_failed = False

    def require_open(self) -> None:
        """Check that the server has not closed this idle connection, without asking it.

        Raises:
            OperationalError: It has.
        """
        if self._poll(0):  # there is something to read: the end, or an error
            raise OperationalError(_SERVER_LOST, "the server has closed the connection")

    def set_up(self, settings: bytes, timeout: float) -> None:
        """Execute the statement for a new session, and find out what the server can do, in one round trip.

        On a Galera node, another round trip waits until it has caught up.

        Raises:
            OperationalError: The server cannot be used: it rejects the statement, has left its cluster, or
                does not reply in time.
        """
        self._query_within(b";".join((settings, _READ_ONLY, _IS_NODE, _GALERA)), timeout)
        self.store_result()
        read_only, node, status = (self._next_rows() for _ in range(3))
        self.accepts_writes = not any(_is_on(value) for row in read_only for value in row)
        self._is_galera = "ON" in _values(node)
        if self._is_galera and _values(status) != _MEMBER:
            raise OperationalError(_NOT_READY, _HAS_LEFT)
        if self._is_galera and "MariaDB" in self.get_server_info():
            self._query_within(_CATCH_UP, timeout)
            self.store_result()

    def is_primary(self, timeout: float) -> bool:
        """Ask whether the server accepts writes. This is no use of the connection: one may be idle meanwhile.

        Raises:
            OperationalError: The connection is broken, there was no reply in time, or the server is a Galera
                node that has left its cluster.
        """
        asked = (_READ_ONLY, _GALERA) if self._is_galera else (_READ_ONLY,)
        self._query_within(b";".join(asked), timeout)
        [values] = super().store_result().fetch_row()
        # A node that has left its cluster answers this SELECT, but none that reads a table.
        if self._is_galera and _values(self._next_rows()) != _MEMBER:
            raise OperationalError(_NOT_READY, _HAS_LEFT)
        self.checked_at = time.monotonic()
        return not any(map(_is_on, values))

    def _next_rows(self) -> tuple[tuple[Any, ...], ...]:
        """Return the rows of the next statement. A proxy may have executed only the first one."""
        if self.next_result() != 0:
            return ()
        rows: tuple[tuple[Any, ...], ...] = super().store_result().fetch_row(0)
        return rows

    def _require_intact(self) -> None:
        if self._has_failed:
            raise ProgrammingError("a statement of this transaction failed: roll it back")

    def _begin_with(self, query: bytes) -> None:
        super().query(b"BEGIN;" + query)
        if self.next_result() != 0:
            raise OperationalError(_COMMANDS_OUT_OF_SYNC, "no result for the statement after BEGIN")

    def _query_within(self, query: bytes, seconds: float | None) -> None:
        if seconds is None:
            super().query(query)
            return
        self.send_query(query)
        if not self._poll(seconds):
            raise OperationalError(_SERVER_LOST, "no reply in time")
        self.read_query_result()

    def _poll(self, seconds: float) -> bool:
        reply = select.poll()
        reply.register(self.fileno(), select.POLLIN)
        return bool(reply.poll(seconds * 1000))


def _is_on(value: object) -> bool:
    """Return whether a variable is on. Newer versions of MariaDB have several modes of `read_only`."""
    return value not in (0, b"0", "0", b"OFF", "OFF")


def _values(status: tuple[tuple[Any, ...], ...]) -> set[object]:
    return {value.decode() if isinstance(value, bytes) else value for _, value in status}
