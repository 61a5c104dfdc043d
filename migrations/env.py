"""Runs migrations for `flask db`: online, and in one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import context
from flask import current_app
from sqlalchemy.engine import Connection

db = current_app.extensions["migrate"].db


def migration_engine() -> sa.Engine:
    """Create an engine without the timeouts for requests.

    They would interrupt a long ALTER, while the server continues with it.
    """
    if db.engine.dialect.name == "sqlite":
        return db.engine.execution_options(writes=True)
    return sa.create_engine(db.engine.url, poolclass=sa.NullPool, connect_args={"charset": "utf8mb4"})


@contextmanager
def only_one(connection: Connection) -> Iterator[None]:
    """Hold a lock so that concurrent deployments wait for this one.

    A migration waits at most five seconds for a table that is in use. While it waits, so does every request
    that uses the table.

    Raises:
        SystemExit: another migration has held the lock for a minute.
    """
    if connection.dialect.name == "sqlite":
        yield  # one transaction for all migrations locks the file: see `transactional_ddl` below
        return
    connection.execute(sa.text("SET SESSION lock_wait_timeout = 5"))
    # Locks belong to the server, so the name must tell databases apart.
    if connection.scalar(sa.text("SELECT GET_LOCK(CONCAT('backline.', DATABASE()), 60)")) != 1:
        raise SystemExit(
            "Another migration has been running for over a minute. Try again when it has finished."
        )
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK(CONCAT('backline.', DATABASE()))"))


def skip_empty_revision(migration_context: object, revision: object, directives: list[object]) -> None:
    """Let `flask db migrate` write no file if there is no difference."""
    script = directives[0]
    if getattr(context.config.cmd_opts, "autogenerate", False) and script.upgrade_ops.is_empty():  # type: ignore[attr-defined]
        directives.clear()


if context.is_offline_mode():
    raise SystemExit("Migrations run on a live database only; --sql is not supported.")

with migration_engine().connect() as connection, only_one(connection):
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        process_revision_directives=skip_empty_revision,
        # Alembic would commit after each migration on SQLite, and let another process run the next one.
        transactional_ddl=connection.dialect.name == "sqlite",
        **current_app.extensions["migrate"].configure_args,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
