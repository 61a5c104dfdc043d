"""The database: the engine, and short transactions."""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar, TypeVarTuple

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, ORMExecuteState, Session
from sqlalchemy.sql.functions import FunctionElement

from app.infra import mysql, sqlite
from app.infra.column_types import UTCDateTime
from app.infra.mysql import StaleConnectionError
from app.infra.mysql_pool import error_code
from app.settings.database_url import parse_database_url
from config import Config

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
log = logging.getLogger(__name__)

# Keep retrying a conflicting transaction for up to this long.
CONFLICT_SECONDS = 5.0
# Repeat a transaction whose server failed only if that took no longer. A statement without a reply within its
# limit is not sent again: the request has no time left, and the server may only be slow.
FAILOVER_SECONDS = 3.0


class Base(DeclarativeBase):
    """The base class of all models."""

    # Alembic can only drop constraints that have names.
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


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock as an SQL function: one clock for all processes, whatever their hosts' clocks say.

    Leases and lifetimes are measured by it. SQLite's has a resolution of one millisecond.
    """

    type = UTCDateTime()
    inherit_cache = True


@compiles(database_now)
def _mysql_now(*_: object, **__: object) -> str:
    return "UTC_TIMESTAMP(6)"


@compiles(database_now, "sqlite")
def _sqlite_now(*_: object, **__: object) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def init_app(app: Flask, config: Config) -> None:
    """Bind the engine to the application. Opens no connection."""
    parsed = parse_database_url(config.database_url)
    is_sqlite = parsed.url.get_backend_name() == "sqlite"
    app.config["SQLALCHEMY_DATABASE_URI"] = parsed.url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = (
        sqlite.engine_options() if is_sqlite else mysql.engine_options(config)
    )
    db.init_app(app)
    # It would close `db.session` after each request, but all sessions are those of the functions below.
    app.teardown_appcontext_funcs.clear()
    with app.app_context():
        engine = db.engine
    if is_sqlite:
        sqlite.guard(engine)
    else:
        mysql.guard(engine, parsed.hosts)


def init_migrations(app: Flask) -> None:
    """Set up `flask db`."""
    from flask_migrate import Migrate

    with app.app_context():
        is_sqlite = db.engine.dialect.name == "sqlite"
    Migrate(app, db, compare_type=True, render_as_batch=is_sqlite)


def read(statement: sa.Select[*Ts]) -> Sequence[sa.Row[*Ts]]:
    """Read rows with one statement, in one round trip: for hot paths. It sees what is committed now.

    Select columns, not entities. If a pooled connection turns out to be broken, or does not respond within a
    second, the statement is executed again on a new one.

    Raises:
        OperationalError: The database is unavailable.
    """
    engine = db.engine.execution_options(is_single_read=True)
    try:
        with engine.connect() as connection:
            return connection.execute(statement).all()
    except StaleConnectionError:
        with mysql.new_connection(), engine.connect() as connection:
            return connection.execute(statement).all()


@contextmanager
def reading() -> Iterator[Session]:
    """Open a session that only reads, and sees what is committed now. For entities, or several statements.

    It is never the caller's own transaction, which may have begun before the caller got a lock. On MySQL,
    each statement sees what is committed by then, whether in a transaction or not. So this opens none.
    """
    engine = db.engine.execution_options(reads=True)
    with _ReadingSession(engine) as session:
        yield session


class _ReadingSession(Session):
    """A session whose first statement is executed again if its pooled connection turns out to be unusable."""


@event.listens_for(_ReadingSession, "do_orm_execute")
def _execute_reading(state: ORMExecuteState) -> sa.Result[Any]:
    began_at = time.monotonic()
    try:
        return state.invoke_statement()
    except StaleConnectionError:
        if time.monotonic() - began_at > FAILOVER_SECONDS:
            raise
    state.session.rollback()  # SQLAlchemy's own transaction: the server has none
    with mysql.new_connection():
        return state.invoke_statement()


@contextmanager
def writing() -> Iterator[Session]:
    """Open a short transaction. It is committed at the end of the block, and rolled back on any error.

    The application uses `run_in_transaction`, which repeats it after a conflict or a failover.
    """
    engine = db.engine.execution_options(writes=True)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def db_now(db: Session) -> datetime:
    """Return the time of the database's clock."""
    return db.execute(sa.select(database_now())).scalar_one()


def read_db_now() -> datetime:
    """Return the time of the database's clock, outside any transaction."""
    [[now]] = read(sa.select(database_now()))
    return now


def run_in_transaction(work: Callable[[Session], T], *, retries: int = 3, is_idempotent: bool = False) -> T:
    """Run `work` in a transaction, and again from its start where that is safe. Call no other service in it.

    After a duplicate key, `work` can find the row that it could not see before. After a conflict with another
    transaction, which Galera may find only at COMMIT, everything was rolled back. A transaction whose
    connection broke, or whose server lost its role, has changed nothing if COMMIT was not yet sent.

    Args:
        work: What to run.
        retries: How often to repeat it.
        is_idempotent: Repeat it also if the reply to COMMIT was lost, so that it may have taken effect.

    Raises:
        IntegrityError: The last attempt violated a constraint.
        OperationalError: The database failed, or the last attempt ended in a conflict.
    """
    began_at = time.monotonic()
    for retries_left in range(retries, -1, -1):
        is_committing = False
        try:
            with writing() as session:
                result = work(session)
                session.flush()
                is_committing = True
            return result
        except IntegrityError:
            if not retries_left:
                raise
        except DBAPIError as error:
            may_retry = _changed_nothing(error) or (
                is_idempotent and is_committing and error.connection_invalidated
            )
            is_conflict = error_code(error.orig) in mysql.ROLLED_BACK
            limit = CONFLICT_SECONDS if is_conflict else FAILOVER_SECONDS
            if not retries_left or not may_retry or time.monotonic() - began_at > limit:
                raise
        time.sleep(random.uniform(0.01, 0.05))  # otherwise, the same two would conflict again
    raise AssertionError("unreachable")


def run_in_transaction_until(deadline: float, work: Callable[[Session], T]) -> T:
    """Run `work` in a transaction, and retry while the database is unavailable, until `deadline`.

    If a connection breaks during COMMIT, the transaction may have taken effect. So `work` must first check
    whether it has.

    Args:
        deadline: A `time.monotonic` value.
        work: What to run.

    Raises:
        IntegrityError: The last attempt violated a constraint.
        OperationalError: The database was still unavailable at the deadline.
        InterfaceError: The connection was still broken at the deadline.
        PoolTimeoutError: No connection was free at the deadline.
    """
    pause = 0.05
    while True:
        try:
            return run_in_transaction(work)
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            if time.monotonic() + pause >= deadline:
                raise
            log.warning("database_unavailable", extra={"reason": type(error).__name__})
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(pause * 2, 2.0)


def _changed_nothing(error: DBAPIError) -> bool:
    """Return whether a transaction that ended with this error had no effect, and may succeed if repeated.

    An error without a statement is not included: the connection could not be opened, for which callers should
    not wait, or the reply to COMMIT was lost.
    """
    if isinstance(error, StaleConnectionError) or error_code(error.orig) in mysql.ROLLED_BACK:
        return True
    is_failover = error.connection_invalidated and error_code(error.orig) in mysql.SERVER_CHANGED
    return is_failover and error.statement is not None
