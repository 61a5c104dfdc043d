"""Checks of the settings of MySQL or MariaDB, and of the tables' columns."""

import re
from collections.abc import Iterator

import sqlalchemy as sa

from app.doctor.clocks import check_database_clock
from app.doctor.result import CheckResult, failure, ok, warning
from app.infra.database import Base
from app.infra.probes import REPLICA, is_read_only
from config import Config

# SKIP LOCKED, with which schedulers share their work, and collations that compare exactly.
MIN_MYSQL, MIN_MARIADB = (8, 0, 17), (10, 6, 0)

NOT_PRIMARY = "DATABASE_URL must point to the server that accepts writes."
# Servers lack some of these: `SHOW VARIABLES` skips what it does not know.
_VARIABLES = """
    SHOW VARIABLES WHERE Variable_name IN (
        'version', 'max_connections', 'max_user_connections', 'innodb_flush_log_at_trx_commit',
        'transaction_isolation', 'tx_isolation', 'time_zone', 'system_time_zone'
    )
"""


def check_mysql_server(connection: sa.Connection, config: Config) -> Iterator[CheckResult]:
    """Check the server's version, role, limits, durability, isolation, and clock."""
    variables = {name: str(value) for name, value in connection.execute(sa.text(_VARIABLES)).all()}
    yield check_version(variables["version"])
    if is_read_only(connection):
        yield failure(f"database: {REPLICA}", NOT_PRIMARY)
    limits = [int(variables[name]) for name in ("max_connections", "max_user_connections")]
    yield _check_connections(config, min(filter(None, limits)))
    flush = variables["innodb_flush_log_at_trx_commit"]
    if flush != "1":
        yield warning(
            f"database: innodb_flush_log_at_trx_commit is {flush}",
            "Set it to 1. Otherwise, a crash of that machine can lose refresh tokens that Spotify has just "
            "replaced, and people have to connect again.",
        )
    yield _check_isolation(variables.get("transaction_isolation") or variables.get("tx_isolation", ""))
    zone = variables["time_zone"].replace("SYSTEM", variables["system_time_zone"])
    yield ok(f"database: its time zone is {zone}", "Any will do: Backline stores UTC, and asks for UTC.")
    yield check_database_clock("database", connection)


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


def check_columns(connection: sa.Connection) -> Iterator[CheckResult]:
    """Check that text is stored and compared as the models say, which a converted dump may have changed."""
    found = connection.execute(
        sa.text(
            "SELECT table_name, column_name, character_set_name, collation_name "
            "FROM information_schema.columns WHERE table_schema = DATABASE() AND collation_name IS NOT NULL"
        )
    )
    wrong = [
        f"{table}.{column} ({collation})"
        for table, column, charset, collation in found.all()
        if not _is_as_declared(connection.dialect, table, column, charset, collation)
    ]
    if not wrong:
        yield ok("database: text is utf8mb4, and names are compared exactly")
        return
    yield failure(
        f"database: text is stored or compared differently in {', '.join(wrong)}",
        "Different names could count as one, or characters be lost. Restore the dump without converting it, "
        "or change these columns with ALTER TABLE ... MODIFY to the types in migrations/versions.",
    )


def _is_as_declared(dialect: sa.Dialect, table: str, column: str, charset: str, collation: str) -> bool:
    declared = Base.metadata.tables.get(table)
    if declared is None or column not in declared.columns:  # of another release
        return True
    exact = re.search(r" COLLATE (\w+)", declared.columns[column].type.compile(dialect=dialect))
    return charset == "utf8mb4" and (exact is None or exact[1] == collation)


def _check_isolation(level: str) -> CheckResult:
    summary = f"database: transactions are {level}"
    if level == "READ-COMMITTED":
        return ok(summary)
    return warning(
        summary,
        "Backline asks for READ COMMITTED on each connection, which a proxy in between drops. Let the proxy "
        "keep what SET SESSION sets, or connect directly. Otherwise, transactions deadlock more often.",
    )


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
