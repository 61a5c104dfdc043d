"""Checks that MySQL can do what requests need."""

import re
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from app.doctor.clocks import check_clock
from app.doctor.result import CheckResult, excerpt, failure, ok, warning
from app.infra.database import db
from app.infra.encryption import TokenCipher
from app.infra.mysql_pool import TOO_MANY_CONNECTIONS, error_code
from app.infra.probes import (
    REPLICA,
    Unusable,
    is_read_only,
    probe_database,
    reason_of,
    schema_revision,
    schema_revisions,
)
from app.spotify.tokens import key_rotation
from config import Config

# SKIP LOCKED, with which schedulers share their work, and collations that compare exactly.
MIN_MYSQL, MIN_MARIADB = (8, 0, 17), (10, 6, 0)

_NOT_PRIMARY = "DATABASE_URL must point to the server that accepts writes."
_ADVICE = {
    **dict.fromkeys((1290, 1836, 3032), _NOT_PRIMARY),
    **dict.fromkeys(
        (1044, 1142, 1143),
        "Grant the user of DATABASE_URL its permissions: GRANT SELECT, INSERT, UPDATE, DELETE ON database.* "
        "(and CREATE, ALTER, DROP, INDEX, REFERENCES for flask db upgrade).",
    ),
    **dict.fromkeys(
        (1045, 1130, 1698),
        "Check the user name and the password in DATABASE_URL, and from which hosts this user may connect.",
    ),
    1047: "This Galera node is not part of its cluster. DATABASE_URL must point to a node that is.",
    1049: "Create the database that DATABASE_URL names.",
    **dict.fromkeys(
        TOO_MANY_CONNECTIONS,
        "Allow more connections (max_connections, max_user_connections), or lower DATABASE_POOL_SIZE and "
        "DATABASE_MAX_OVERFLOW.",
    ),
}


def check_database(config: Config, cipher: TokenCipher) -> Iterator[CheckResult]:
    """Check the server, its version, the schema, all permissions, and the keys of stored tokens."""
    # Without the query, which may contain a password.
    shown = make_url(config.database_url).set(query={}).render_as_string(hide_password=True)
    try:
        with db.engine.connect() as connection:
            server = list(_check_server(connection, config))
            revision = _revision(connection)
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:  # the last two: an unknown URL parameter
        yield _describe(f"database: {shown}", error)
        return
    yield ok(f"database: {shown}")
    yield from server
    required, _ = schema_revisions()
    if revision != required:
        yield failure(
            f"schema: {revision or 'empty'}, but this release needs {required}", "Run: flask db upgrade"
        )
        return
    yield ok(f"schema: {revision}")
    try:
        probe_database(db.engine)
    except (sa.exc.SQLAlchemyError, Unusable) as error:
        yield _describe("database", error)
        return
    yield _check_keys(cipher)


def _check_server(connection: sa.Connection, config: Config) -> Iterator[CheckResult]:
    if connection.dialect.name == "sqlite":
        return
    yield check_version(str(connection.execute(sa.text("SELECT VERSION()")).scalar_one()))
    if is_read_only(connection):
        yield failure(f"database: {REPLICA}", _NOT_PRIMARY)
    limits = connection.execute(sa.text("SELECT @@GLOBAL.max_connections, @@max_user_connections")).one()
    yield _check_connections(config, min(int(number) for number in limits if number))
    flush, timestamp = connection.execute(
        sa.text("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, UNIX_TIMESTAMP(NOW(6))")
    ).one()
    if int(flush) != 1:
        yield warning(
            f"database: innodb_flush_log_at_trx_commit is {flush}",
            "Set it to 1. Otherwise, a crash of that machine can lose refresh tokens that Spotify has just "
            "replaced, and people have to connect again.",
        )
    yield check_clock("database", float(timestamp))


def check_version(version: str) -> CheckResult:
    """Check the result of `SELECT VERSION()`."""
    mariadb = re.search(r"(\d+)\.(\d+)\.(\d+)-mariadb", version, re.IGNORECASE)
    number = mariadb or re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    name, minimum = ("MariaDB", MIN_MARIADB) if mariadb else ("MySQL", MIN_MYSQL)
    if number is not None and tuple(map(int, number.groups())) < minimum:
        return failure(
            f"database server: {name} {number[1]}.{number[2]}.{number[3]}",
            "Use MySQL 8.0.17, MariaDB 10.6, or newer. Backline needs SKIP LOCKED and collations that "
            "compare exactly.",
        )
    return ok(f"database server: {version}")


def _check_connections(config: Config, limit: int) -> CheckResult:
    per_process = config.database_pool_size + config.database_max_overflow
    needed = (config.web_concurrency + 1) * per_process
    summary = f"database connections: up to {needed} with one scheduler; the server allows {limit}"
    if needed <= limit:
        return ok(summary)
    return warning(
        summary,
        "Requests wait when no connection is free. Allow more (max_connections, max_user_connections), or "
        "lower DATABASE_POOL_SIZE and DATABASE_MAX_OVERFLOW.",
    )


def _check_keys(cipher: TokenCipher) -> CheckResult:
    missing = key_rotation.missing_keys(cipher)
    if missing:
        return failure(
            f"encryption keys missing for stored tokens: {', '.join(missing)}",
            "Add them to TOKEN_ENCRYPTION_KEYS again, after the newest key.",
        )
    return ok("encryption keys: none is missing for stored tokens")


def _revision(connection: sa.Connection) -> str | None:
    return schema_revision(connection) if sa.inspect(connection).has_table("alembic_version") else None


def _describe(subject: str, error: Exception) -> CheckResult:
    cause = getattr(error, "orig", None) or error
    advice = _NOT_PRIMARY if isinstance(error, Unusable) else _ADVICE.get(error_code(cause))
    if advice:
        return failure(f"{subject}: {reason_of(error)}", advice)
    return failure(
        f"{subject}: {reason_of(error)}: {excerpt(cause.args[-1] if cause.args else '')}",
        "Check DATABASE_URL, and whether the server is running or the file is writable.",
    )
