"""The database: one engine, short transactions, and columns that keep what they are given."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.dialects.mysql import DATETIME, VARCHAR
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.functions import FunctionElement

from app.infra import mysql
from app.infra.mysql_pool import error_code
from config import Config

T = TypeVar("T")
log = logging.getLogger(__name__)

# A transaction in whose way others keep getting is begun anew for so long.
CONFLICT_SECONDS = 5.0


class Base(DeclarativeBase):
    # With names for every constraint Alembic can drop what it has made, on every database.
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


db = SQLAlchemy(model_class=Base, disable_autonaming=True)
migrate = Migrate()


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime, stored as UTC with microseconds.

    MySQL's DATETIME keeps neither the offset nor the microseconds, so a plain
    DateTime(timezone=True) would hand back 12:00 for 12:00+02:00.
    """

    impl = sa.DateTime().with_variant(DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, in SQL: one clock for all processes, whatever their own hosts believe.

    Leases and lives are measured by it. SQLite knows milliseconds only.
    """

    type = UTCDateTime()
    inherit_cache = True


@compiles(database_now)
def _mysql_now(*_: object, **__: object) -> str:
    return "UTC_TIMESTAMP(6)"


@compiles(database_now, "sqlite")
def _sqlite_now(*_: object, **__: object) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


class exact_string(sa.types.TypeDecorator[str]):  # noqa: N801 - reads as the function beside it
    """Text from outside that is equal only to itself, trailing blanks included.

    MySQL's default collations take `ä` for `a` and `A` for `a`, and all that pad take `a ` for `a`. What
    is the same name is our rule (`app.models.normalization`), not the column's.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name not in ("mysql", "mariadb"):
            return super().load_dialect_impl(dialect)
        # Each of the two has a collation by code point that does not pad, under a name of its own.
        is_mariadb = getattr(dialect, "is_mariadb", False)
        return VARCHAR(self.length, collation=f"utf8mb4_{'nopad' if is_mariadb else '0900'}_bin")


def code_string(length: int) -> sa.String:
    """Text that is made here, from an alphabet without blanks, and compared by code point."""
    return sa.String(length).with_variant(VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")


def init_app(app: Flask, config: Config) -> None:
    """Bind the engine to the application. Opens no connection."""
    is_sqlite = config.database_url.startswith("sqlite")
    app.config["SQLALCHEMY_DATABASE_URI"] = config.database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = _SQLITE_OPTIONS if is_sqlite else mysql.engine_options(config)
    db.init_app(app)
    migrate.init_app(app, db, compare_type=True, render_as_batch=is_sqlite)
    with app.app_context():
        engine = db.engine
    if is_sqlite:
        event.listen(engine, "do_connect", _sqlite_directory)
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    else:
        mysql.guard(engine)


@contextmanager
def reading() -> Iterator[Session]:
    """A short transaction that only reads, and sees what is committed now.

    Never the caller's: that might have begun before the lock was had that the caller waited for.
    """
    with Session(db.engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def writing() -> Iterator[Session]:
    """A short transaction, committed at the end of the block and rolled back on any error.

    No call to another service may stand inside the block.
    """
    engine = db.engine.execution_options(writes=True)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def db_now(db: Session) -> datetime:
    """What the database's clock says."""
    return db.execute(sa.select(database_now())).scalar_one()


def read_db_now() -> datetime:
    """The same, asked for on its own."""
    with reading() as session:
        return db_now(session)


def run_in_transaction(unit: Callable[[Session], T], *, attempts: int = 4) -> T:
    """Run `unit` in a transaction, and once more from its start if another one got in its way.

    For units that look before they insert: the second look sees what the first could not.
    A deadlock victim is rolled back whole, so it may run again as well.

    Raises:
        IntegrityError, OperationalError: the last attempt's, if none succeeded.
    """
    until = time.monotonic() + CONFLICT_SECONDS
    for attempt in range(1, attempts + 1):
        try:
            with writing() as session:
                return unit(session)
        except IntegrityError:
            if attempt == attempts:
                raise
        except OperationalError as error:
            if attempt == attempts or not _is_deadlock(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.01, 0.05))  # or the same two would meet again at once
    raise AssertionError("unreachable")


def run_in_transaction_until(deadline: float, unit: Callable[[Session], T]) -> T:
    """The same, and go on trying while the database is away, until `deadline` (`time.monotonic`).

    A connection that breaks during COMMIT leaves open whether it took effect. So this is for units
    only that look first whether they have.

    Raises:
        IntegrityError, OperationalError, InterfaceError, NoConnectionFree: the last attempt's.
    """
    pause = 0.05
    while True:
        try:
            return run_in_transaction(unit)
        except (OperationalError, InterfaceError, NoConnectionFree) as error:
            if time.monotonic() + pause >= deadline:
                raise
            log.warning("database_unavailable", extra={"reason": type(error).__name__})
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(pause * 2, 2.0)


def _is_deadlock(error: OperationalError) -> bool:
    """MySQL's 1213 (deadlock) and 1205 (lock wait).

    After 1205 MySQL has undone one statement only; leaving the `writing()` block undid the rest.
    """
    return error_code(error.orig) in (1213, 1205)


_SQLITE_OPTIONS: dict[str, Any] = {"connect_args": {"timeout": 5}, "hide_parameters": True}


def _sqlite_directory(_dialect: object, _record: object, arguments: list[Any], _named: object) -> None:
    # A fresh checkout has no `instance/` yet. Where it cannot be made, the driver says so better.
    with suppress(OSError):
        Path(arguments[0]).parent.mkdir(parents=True, exist_ok=True)


def _sqlite_connect(connection: Any, _record: object) -> None:
    # The driver's own idea of when to begin makes a read lock that cannot be raised to a write
    # lock; `_sqlite_begin` says it plainly instead. WAL lets readers pass a writer.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
