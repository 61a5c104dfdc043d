"""Runs migrations for `flask db`: online, in one process at a time, and again if they were interrupted."""

import sys

import click
import sqlalchemy as sa
from alembic import context
from flask import current_app
from sqlalchemy.engine import Connection

from app.infra import mysql
from app.infra.mysql_pool import error_code
from app.infra.probes import schema_revisions
from app.settings.database_url import parse_database_url
from migrations import resumable  # noqa: F401 - Alembic finds what it defines

# What to do about an error of MySQL, by its number.
ADVICE = {
    1205: "Something has used a table for more than five seconds: a long transaction, or a backup. "
    "`SHOW FULL PROCESSLIST` shows what. Wait until it has finished, or end it with `KILL <id>`.",
    1142: "This account may not change tables. Set DATABASE_URL to one that may: see docs/operations.md.",
    **dict.fromkeys((1053, 1927, 2006, 2013), "The connection to MySQL was lost."),
}

db = current_app.extensions["migrate"].db


def migration_engine() -> sa.Engine:
    """Create an engine without the timeouts for requests.

    They would interrupt a long ALTER, while the server continues with it.
    """
    if db.engine.dialect.name == "sqlite":
        return db.engine.execution_options(writes=True)
    url = parse_database_url(current_app.extensions["backline"].config.database_url)
    engine = sa.create_engine(url.url, poolclass=sa.NullPool, connect_args={"charset": "utf8mb4"})
    mysql.use_hosts(engine, url.hosts)
    return engine


def lock_out_others(connection: Connection) -> None:
    """Hold a lock until the connection is closed, so that concurrent deployments wait for this one.

    A migration waits at most five seconds for a table or row that is in use. While it waits, so does every
    request that uses the table.

    Raises:
        SystemExit: Another migration has held the lock for 90 seconds.
    """
    if connection.dialect.name == "sqlite":
        return  # one transaction for all migrations locks the file: see `transactional_ddl` below
    # If this machine fails, the server closes the connection a minute later, and so releases the lock.
    connection.execute(
        sa.text("SET SESSION lock_wait_timeout = 5, innodb_lock_wait_timeout = 5, wait_timeout = 60")
    )
    # Locks belong to the server, so the name must tell databases apart.
    lock = sa.text("SELECT GET_LOCK(CONCAT('backline.', DATABASE()), 1)")
    for second in range(90):
        if connection.scalar(lock) == 1:
            return
        if second == 0:
            sys.stderr.write("Another migration is running. Waiting until it has finished.\n")
    raise SystemExit(
        "Another migration has been running for over a minute. `SHOW FULL PROCESSLIST` shows what it is "
        "doing. Run the same command again when it has finished."
    )


def skip_empty_revision(migration_context: object, revision: object, directives: list[object]) -> None:
    """Let `flask db migrate` write no file if there is no difference."""
    script = directives[0]
    if getattr(context.config.cmd_opts, "autogenerate", False) and script.upgrade_ops.is_empty():  # type: ignore[attr-defined]
        directives.clear()


if context.is_offline_mode():
    raise SystemExit("Migrations run on a live database only; --sql is not supported.")


def is_comparable(item: object, _name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
    """Return whether `flask db check` can compare this.

    SQLite can add a reference only as a part of a column, and SQLAlchemy does not reflect the ON DELETE of
    such a reference.
    """
    is_added = kind == "foreign_key_constraint" and item.column_keys == ["spotify_app_id"]
    return not (is_added and context.get_context().dialect.name == "sqlite")


def is_rolled_back() -> bool:
    """Return whether a later release has run `flask db upgrade`, and this one is told to do so."""
    command = click.get_current_context(silent=True)
    revision = context.get_context().get_current_revision()
    is_unknown = revision is not None and revision not in schema_revisions()[1]
    return is_unknown and command is not None and command.info_name == "upgrade"


def run(connection: Connection) -> None:
    """Run what `flask db` asks for."""
    lock_out_others(connection)
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        process_revision_directives=skip_empty_revision,
        include_object=is_comparable,
        # Alembic would commit after each migration on SQLite, and let another process run the next one.
        transactional_ddl=connection.dialect.name == "sqlite",
        **current_app.extensions["migrate"].configure_args,
    )
    if is_rolled_back():
        sys.stderr.write("The schema is newer than this release, which works with it. Nothing was changed.\n")
        return
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


try:
    with migration_engine().connect() as connection:
        run(connection)
except sa.exc.OperationalError as error:
    advice = ADVICE.get(error_code(error.orig), "`flask doctor` may show why.")
    raise SystemExit(
        f"The database has reported an error: {error.orig}\n"
        f"It was about: {error.statement or 'the connection'}\n"
        f"{advice}\n"
        "What has been done so far stays, and nothing is lost. Then run the same command again."
    ) from error
