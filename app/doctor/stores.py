"""`flask doctor` on MySQL and Redis: can they do what requests need, and if not, what to do."""

import re
from collections.abc import Iterator
from typing import Any

import redis
import sqlalchemy as sa
from redis.exceptions import NoPermissionError
from sqlalchemy.engine import make_url

from app.doctor.result import CheckResult
from app.infra.database import db
from app.infra.mysql_pool import TOO_MANY_CONNECTIONS, error_code
from app.infra.probes import (
    REPLICA,
    Unusable,
    is_read_only,
    probe_database,
    probe_redis,
    reason_of,
    schema_revision,
    schema_revisions,
)
from app.services import services
from app.spotify.tokens import key_rotation

# SKIP LOCKED, by which schedulers share their work, collations that compare exactly, and GETEX for sessions.
LEAST_MYSQL, LEAST_MARIADB, LEAST_REDIS = (8, 0, 17), (10, 6, 0), (6, 2, 0)

_NOT_PRIMARY = "DATABASE_URL has to lead to the server that accepts writes."
_MYSQL_ADVICE = {
    **dict.fromkeys((1290, 1836, 3032), _NOT_PRIMARY),
    **dict.fromkeys(
        (1044, 1142, 1143),
        "Grant the user of DATABASE_URL its rights: GRANT SELECT, INSERT, UPDATE, DELETE ON database.* "
        "(and CREATE, ALTER, DROP, INDEX, REFERENCES for flask db upgrade).",
    ),
    **dict.fromkeys(
        (1045, 1130, 1698),
        "Check the user name and password in DATABASE_URL, and from where this user may connect.",
    ),
    1047: "This Galera node is not part of its cluster. DATABASE_URL has to lead to one that is.",
    1049: "Create the database that DATABASE_URL names.",
    **dict.fromkeys(
        TOO_MANY_CONNECTIONS,
        "Allow more (max_connections, max_user_connections), or lower DATABASE_POOL_SIZE and "
        "DATABASE_MAX_OVERFLOW.",
    ),
}

_CLUSTER = "This is a Redis Cluster, which this URL cannot use. Use a single Redis."
_RIGHTS = "~* +@read +@write +@scripting +@transaction +time +ping +info"
_NEEDS_RIGHTS = f"Give the user of REDIS_URL all that Backline uses: ACL SETUSER <name> {_RIGHTS}"
_CHECK_PASSWORD = "Check the user name and password in REDIS_URL."  # noqa: S105
# By the name of redis-py's error, or by what the server says.
_REDIS_ADVICE = {
    "ReadOnlyError": "It is a replica. REDIS_URL has to lead to the primary.",
    "MasterDownError": "It is a replica that has lost its primary. REDIS_URL has to lead to the primary.",
    "NoPermissionError": _NEEDS_RIGHTS,
    "can't run this command": _NEEDS_RIGHTS,
    "can't access": _NEEDS_RIGHTS,
    "OutOfMemoryError": "It is full. Raise maxmemory, or give it a server of its own.",
    "NOREPLICAS": "It accepts no writes until its replicas are back (min-replicas-to-write).",
    "MISCONF": "It cannot save to disk, and accepts no writes until it can. See its log.",
    "max number of clients": "It accepts no more connections. Raise maxclients, or end other clients.",
    "BusyLoadingError": "It is loading its data. Try again when it is done.",
    "AuthenticationError": _CHECK_PASSWORD,
    "NOAUTH": _CHECK_PASSWORD,
    "ClusterCrossSlotError": _CLUSTER,
    "ClusterDownError": _CLUSTER,
    "MovedError": _CLUSTER,
    "AskError": _CLUSTER,
    "TryAgainError": _CLUSTER,
}


def check_database() -> Iterator[CheckResult]:
    """Check the server, its version, the schema, the rights on all tables, and the number of connections."""
    # Without the query: a password may be in it.
    shown = make_url(services().config.database_url).set(query={}).render_as_string(hide_password=True)
    try:
        with db.engine.connect() as connection:
            server = _check_server(connection)
            revision = _revision(connection)
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:  # a parameter in the URL that is none
        yield _database_fault(f"database: {shown}", error)
        return
    yield CheckResult(True, f"database: {shown}")
    yield from server
    head, _ = schema_revisions()
    if revision != head:
        yield CheckResult(
            False, f"schema: {revision or 'empty'}, but this release needs {head}", "Run: flask db upgrade"
        )
        return
    yield CheckResult(True, f"schema: {revision}")
    try:
        probe_database(db.engine)
    except (sa.exc.SQLAlchemyError, Unusable) as error:
        yield _database_fault("database", error)
        return
    missing = key_rotation.missing_keys(services().token_cipher)
    yield CheckResult(
        not missing,
        f"keys missing for stored tokens: {', '.join(missing)}" if missing else "keys of stored tokens",
        "Put them back into TOKEN_ENCRYPTION_KEYS, behind the newest." if missing else "",
    )


def _revision(connection: sa.Connection) -> str | None:
    return schema_revision(connection) if sa.inspect(connection).has_table("alembic_version") else None


def _check_server(connection: sa.Connection) -> list[CheckResult]:
    if connection.dialect.name == "sqlite":
        return []
    version = str(connection.execute(sa.text("SELECT VERSION()")).scalar_one())
    found = [check_version(version)]
    if is_read_only(connection):
        found.append(CheckResult(False, f"database: {REPLICA}", _NOT_PRIMARY))
    allowed = connection.execute(sa.text("SELECT @@GLOBAL.max_connections, @@max_user_connections")).one()
    return [*found, _check_connections(min(int(number) for number in allowed if number))]


def check_version(version: str) -> CheckResult:
    """Check what `SELECT VERSION()` says."""
    mariadb = re.search(r"(\d+)\.(\d+)\.(\d+)-mariadb", version, re.IGNORECASE)
    number = mariadb or re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    name, least = ("MariaDB", LEAST_MARIADB) if mariadb else ("MySQL", LEAST_MYSQL)
    if number is not None and tuple(map(int, number.groups())) < least:
        return CheckResult(
            False,
            f"database server: {name} {number[1]}.{number[2]}.{number[3]}",
            "Use MySQL 8.0.17, MariaDB 10.6, or newer: Backline needs SKIP LOCKED to refresh tokens ahead of "
            "time, and collations that compare exactly.",
        )
    return CheckResult(True, f"database server: {version}")


def _check_connections(allowed: int) -> CheckResult:
    config = services().config
    each = config.database_pool_size + config.database_max_overflow
    most = (config.web_concurrency + 1) * each
    what = f"database connections: {most} at most, with one scheduler; the server allows {allowed}"
    if most <= allowed:
        return CheckResult(True, what)
    return CheckResult(
        True,
        what,
        "When they run out, callers wait for one another. Allow more (max_connections, "
        "max_user_connections), or lower DATABASE_POOL_SIZE and DATABASE_MAX_OVERFLOW.",
        doubtful=True,
    )


def _database_fault(what: str, error: Exception) -> CheckResult:
    cause = getattr(error, "orig", None) or error
    known = _NOT_PRIMARY if isinstance(error, Unusable) else _MYSQL_ADVICE.get(error_code(cause))
    if known:
        return CheckResult(False, f"{what}: {reason_of(error)}", known)
    return CheckResult(
        False,
        f"{what}: {reason_of(error)}: {_excerpt(cause.args[-1] if cause.args else '')}",
        "Check DATABASE_URL: is the server running, or the file writable?",
    )


def _excerpt(text: object) -> str:
    """The beginning of what a server says. None of it is secret: no checks send data."""
    return "".join(filter(str.isprintable, str(text)))[:100]


def check_redis() -> CheckResult:
    """Check the version, and every command that Backline uses."""
    client = services().redis
    try:
        version = _redis_version(client)
        if version is not None and tuple(int(part) for part in version.split(".")[:3]) < LEAST_REDIS:
            return CheckResult(False, f"Redis {version}", "Sessions need GETEX, and so Redis 6.2 or newer.")
        probe_redis(client)
        policy = _eviction_policy(client)
    except (redis.RedisError, TypeError, ValueError) as error:  # a parameter in the URL that is none
        return _redis_fault(error)
    shown = f"Redis {version or '(its version is not shown to this user)'}"
    if policy != "noeviction":
        return CheckResult(
            True,
            f"{shown}: maxmemory-policy is {policy}",
            "Set it to noeviction. Otherwise, a full Redis signs people out and forgets failed sign-ins.",
            doubtful=True,
        )
    return CheckResult(True, shown)


def _redis_version(client: redis.Redis) -> str | None:
    try:
        server: Any = client.info("server")
    except NoPermissionError:
        return None
    return str(server.get("redis_version", "0"))


def _eviction_policy(client: redis.Redis) -> str:
    """What Redis does when it is full. Without a limit, or the right to ask, it is taken to be safe."""
    try:
        memory: Any = client.info("memory")
    except NoPermissionError:
        return "noeviction"
    return str(memory.get("maxmemory_policy", "noeviction")) if memory.get("maxmemory") else "noeviction"


def _redis_fault(error: Exception) -> CheckResult:
    name = type(error).__name__
    found = [advice for sign, advice in _REDIS_ADVICE.items() if sign == name or sign in str(error)]
    if found:
        return CheckResult(False, f"Redis: {name}", found[0])
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return CheckResult(False, f"Redis: {name}", "Is it running? Check REDIS_URL.")
    said = str(error).rpartition("caused error: ")[2]  # without the command, if it was one of several
    return CheckResult(
        False,
        f"Redis: {_excerpt(said)}",
        "Check the parameters of REDIS_URL. It has to lead to a Redis that runs all commands.",
    )
