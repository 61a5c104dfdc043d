"""How `flask db` runs migrations: online, on the application's engine, one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import context
from flask import current_app
from sqlalchemy.engine import Connection

db = current_app.extensions["migrate"].db


@contextmanager
def only_one(connection: Connection) -> Iterator[None]:
    """Let other deploys wait until this one has migrated. SQLite locks its file by itself.

    A migration waits five seconds at most for a table that is in use: longer, and every request
    behind it would wait as well.
    """
    if connection.dialect.name == "sqlite":
        yield
        return
    connection.execute(sa.text("SET SESSION lock_wait_timeout = 5"))
    # Less than the 5 s after which the driver takes the server for dead.
    if connection.scalar(sa.text("SELECT GET_LOCK('backline-migrations', 4)")) != 1:
        raise SystemExit("Another migration is running. Try again when it has ended.")
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK('backline-migrations')"))


def leave_out_empty(migration_context: object, revision: object, directives: list[object]) -> None:
    """`flask db migrate` without a difference writes no file."""
    script = directives[0]
    if getattr(context.config.cmd_opts, "autogenerate", False) and script.upgrade_ops.is_empty():  # type: ignore[attr-defined]
        directives.clear()


if context.is_offline_mode():
    raise SystemExit("Migrations run on a live database only; --sql is not supported.")

with db.engine.connect() as connection, only_one(connection):
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        process_revision_directives=leave_out_empty,
        **current_app.extensions["migrate"].configure_args,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
