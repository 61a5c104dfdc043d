"""How `flask db` runs migrations: online, on the application's engine, one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import context
from flask import current_app
from sqlalchemy.engine import Connection

db = current_app.extensions["migrate"].db


def migration_engine() -> sa.Engine:
    """The application's engine, without its time-outs: they are for requests, and would cut a long
    ALTER off while the server goes on with it.
    """
    if db.engine.dialect.name == "sqlite":
        return db.engine.execution_options(writes=True)
    return sa.create_engine(db.engine.url, poolclass=sa.NullPool, connect_args={"charset": "utf8mb4"})


@contextmanager
def only_one(connection: Connection) -> Iterator[None]:
    """Let other deploys wait until this one has migrated.

    A migration waits five seconds at most for a table that is in use: longer, and every request
    behind it would wait as well.
    """
    if connection.dialect.name == "sqlite":
        yield  # the connection's transaction has locked the file
        return
    connection.execute(sa.text("SET SESSION lock_wait_timeout = 5"))
    # A lock's name is the whole server's; other databases on it are none of our business.
    if connection.scalar(sa.text("SELECT GET_LOCK(CONCAT('backline.', DATABASE()), 60)")) != 1:
        raise SystemExit("Another migration has been running for a minute. Try again when it has ended.")
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK(CONCAT('backline.', DATABASE()))"))


def leave_out_empty(migration_context: object, revision: object, directives: list[object]) -> None:
    """`flask db migrate` without a difference writes no file."""
    script = directives[0]
    if getattr(context.config.cmd_opts, "autogenerate", False) and script.upgrade_ops.is_empty():  # type: ignore[attr-defined]
        directives.clear()


if context.is_offline_mode():
    raise SystemExit("Migrations run on a live database only; --sql is not supported.")

with migration_engine().connect() as connection, only_one(connection):
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        process_revision_directives=leave_out_empty,
        **current_app.extensions["migrate"].configure_args,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
