"""A connection to MySQL or MariaDB that spends no round trip on anything but statements and COMMIT."""

import select
import time
from typing import Any

from MySQLdb import InternalError, OperationalError, ProgrammingError
from MySQLdb.connections import Connection

_COMMANDS_OUT_OF_SYNC = 2014
_SERVER_LOST = 2013


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
    _begins = _is_in_transaction = _has_failed = False

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

    def is_primary(self, timeout: float) -> bool:
        """Ask whether the server accepts writes.

        Raises:
            OperationalError: The connection is broken, or there was no reply in time.
        """
        self._query_within(b"SELECT @@GLOBAL.read_only", timeout)
        [[read_only]] = self.store_result().fetch_row()
        self.checked_at = time.monotonic()
        return read_only in (0, b"0", "0", b"OFF", "OFF")

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
