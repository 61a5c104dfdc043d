"""SQLite: the directory of its file, and transactions that do not deadlock."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection

# How long a transaction waits for the one that is writing.
BUSY_SECONDS = 5.0


def engine_options() -> dict[str, Any]:
    """Return the options for SQLAlchemy's `create_engine`."""
    return {"connect_args": {"timeout": BUSY_SECONDS}, "hide_parameters": True}


def guard(engine: sa.Engine) -> None:
    """Set up connections, and begin transactions ourselves."""
    event.listen(engine, "do_connect", _create_directory)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)


def _create_directory(_dialect: object, _record: object, arguments: list[Any], _named: object) -> None:
    # A fresh checkout has no `instance/` yet. If it cannot be created, the driver reports that more clearly.
    with suppress(OSError):
        Path(arguments[0]).parent.mkdir(parents=True, exist_ok=True)


def _set_up(connection: Any, _record: object) -> None:
    # The driver begins transactions with a read lock that cannot always be upgraded, so `_begin` does it
    # instead. With WAL, a writer does not block readers.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("is_single_read"):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")
