"""Checks that MySQL can do what requests need."""

from collections.abc import Iterator

import sqlalchemy as sa

from app.doctor.mysql_hosts import check_hosts
from app.doctor.mysql_server import NOT_PRIMARY, check_columns, check_mysql_server
from app.doctor.result import CheckResult, excerpt, failure, ok
from app.infra.database import db
from app.infra.encryption import TokenCipher
from app.infra.mysql_pool import TOO_MANY_CONNECTIONS, error_code
from app.infra.probes import Unusable, pending_migration, probe_database, reason_of, schema_revision
from app.settings.database_url import parse_database_url
from app.spotify.tokens import key_rotation
from config import Config

_ADVICE = {
    **dict.fromkeys((1290, 1836, 3032), NOT_PRIMARY),
    **dict.fromkeys(
        (1044, 1142, 1143),
        "Grant the user of DATABASE_URL its permissions: GRANT SELECT, INSERT, UPDATE, DELETE ON database.* "
        "(and CREATE, ALTER, DROP, INDEX, REFERENCES for flask db upgrade).",
    ),
    **dict.fromkeys(
        (1045, 1130, 1698),
        "Check the user name and the password in DATABASE_URL, and from which hosts this user may connect.",
    ),
    # The driver's own 1045 says so as well.
    **dict.fromkeys(
        (1251, 1524, 2054, 2058, 2059, 2061),
        "The account signs in with a plugin that the driver or the server lacks, or that needs TLS. Install "
        "the plugin (Debian: libmariadb3), add ssl_ca to DATABASE_URL, or give the account another one: "
        "ALTER USER ... IDENTIFIED BY '...'.",
    ),
    1665: "Set binlog_format to ROW or MIXED. A log of statements cannot hold transactions like Backline's.",
    2026: "Check ssl_ca and the other TLS parameters of DATABASE_URL, and the server's certificate.",
    1047: "This Galera node is not part of its cluster. DATABASE_URL must point to a node that is.",
    1049: "Create the database that DATABASE_URL names.",
    **dict.fromkeys(
        TOO_MANY_CONNECTIONS,
        "Allow more connections (max_connections, max_user_connections), or lower DATABASE_POOL_SIZE and "
        "DATABASE_MAX_OVERFLOW.",
    ),
}


# A key that may be used for longer is changed before, for other reasons.
_LONG_LIFE_DAYS = 3650


def check_database(config: Config, cipher: TokenCipher) -> Iterator[CheckResult]:
    """Check the server, its version, the schema, all permissions, and the keys of stored tokens."""
    parsed = parse_database_url(config.database_url)
    shown = parsed.shown
    yield from check_hosts(parsed)
    try:
        with db.engine.connect() as connection:
            is_mysql = connection.dialect.name != "sqlite"
            server = list(check_mysql_server(connection, config)) if is_mysql else []
            pending = pending_migration(connection)
            revision = None if pending else schema_revision(connection)
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:  # the last two: an unknown URL parameter
        yield describe(f"database: {shown}", error)
        return
    yield ok(f"database: {shown}")
    yield from server
    if pending is not None:
        yield failure(pending.rstrip("."), "Run: flask db upgrade")
        return
    yield ok(f"schema: {revision}")
    try:
        probe_database(db.engine)
        if is_mysql:
            with db.engine.connect() as connection:
                yield from check_columns(connection)
    except (sa.exc.SQLAlchemyError, Unusable) as error:
        yield describe("database", error)
        return
    yield _check_keys(cipher)


def _check_keys(cipher: TokenCipher) -> CheckResult:
    missing = key_rotation.missing_keys(cipher)
    if missing:
        return failure(
            f"encryption keys missing for stored tokens: {', '.join(missing)}",
            "Add them to TOKEN_ENCRYPTION_KEYS again, after the newest key.",
        )
    days, advice = key_rotation.days_per_key(), ""
    if days is not None and days < _LONG_LIFE_DAYS:
        advice = (
            f"At the current rate of refreshes, change the key every {days:,.0f} days: docs/custody.md#keys"
        )
    return ok("encryption keys: none is missing for stored tokens", advice)


def describe(subject: str, error: Exception) -> CheckResult:
    """Return a failure that says what an error means, and what to do."""
    cause = getattr(error, "orig", None) or error
    code = 2059 if "could not be loaded" in str(cause) else error_code(cause)
    advice = NOT_PRIMARY if isinstance(error, Unusable) else _ADVICE.get(code)
    if advice:
        return failure(f"{subject}: {reason_of(error)}", advice)
    return failure(
        f"{subject}: {reason_of(error)}: {excerpt(cause.args[-1] if cause.args else '')}",
        "Check DATABASE_URL, and whether the server is running or the file is writable.",
    )
