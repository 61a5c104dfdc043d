"""Check that MySQL and Redis can do what requests need. Used by /readyz and `flask doctor`."""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from app.infra.database import Base
from app.infra.mysql_pool import error_code
from app.infra.redis_cluster import ClusterPool
from app.infra.redis_refusals import Refused
from app.infra.redis_round_trip import Command, values_of
from config import ROOT

_SCRIPT = (Path(__file__).parent / "probe.lua").read_text()
_SCRIPT_HASH = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()  # Redis' name for it

REPLICA = "It is a replica, or in maintenance."


class Unusable(Exception):
    """The server responds, but cannot do what requests need. The message says why."""


def probe_redis(client: redis.Redis) -> None:
    """Use every command that requests use, in one round trip to the server, or to each primary of a cluster.

    Raises:
        redis.RedisError: A server is unavailable, or rejects a command.
    """
    pool: Any = client.connection_pool
    tags = pool.slots().tags() if isinstance(pool, ClusterPool) else ["probe"]
    if not tags:
        raise redis.ConnectionError("no node of the cluster has slots")
    for tag in tags:
        keys = [f"session:{{{tag}}}", f"shared:{{{tag}}}", f"sessions-of:{{{tag}}}"]
        commands: list[Command] = [
            ("SET", keys[0], "", "PX", 5000),
            ("EVAL", _SCRIPT, len(keys), *keys),
            ("EVALSHA", _SCRIPT_HASH, len(keys), *keys),
        ]
        commands += [("SCRIPT", "LOAD", _SCRIPT)] if not isinstance(pool, ClusterPool) else []
        values_of(client, commands)


def probe_database(engine: sa.Engine) -> None:
    """Check the schema, and every privilege on every table, without changing a row.

    A schema that is newer than this release is fine: migrations run before the code is replaced.

    Raises:
        Unusable: The schema is older than this release, or the server is read-only.
        sqlalchemy.exc.SQLAlchemyError: The server is unavailable, or rejects a statement.
    """
    with engine.execution_options(writes=True).connect() as connection:
        if reason := _why_outdated(schema_revision(connection)):
            raise Unusable(reason)
        if connection.dialect.name != "sqlite" and is_read_only(connection):
            raise Unusable(REPLICA)
        for table in Base.metadata.sorted_tables:
            columns, nothing = list(table.columns), sa.false()
            connection.execute(
                sa.insert(table).from_select(
                    columns, sa.select(*columns).where(nothing), include_defaults=False
                )
            )
            connection.execute(sa.update(table).values({columns[0]: columns[0]}).where(nothing))
            connection.execute(sa.delete(table).where(nothing))
        connection.rollback()


def schema_revision(connection: sa.Connection) -> str | None:
    """Return the revision of the database, or None if it has none."""
    revision: str | None = connection.execute(
        sa.text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return revision


def pending_migration(connection: sa.Connection) -> str | None:
    """Return what is wrong with the schema if it is older than this release needs, or None."""
    has_revision = sa.inspect(connection).has_table("alembic_version")
    return _why_outdated(schema_revision(connection) if has_revision else None)


def _why_outdated(revision: str | None) -> str | None:
    head, known = schema_revisions()
    if revision is None or (revision in known and revision != head):
        return f"The schema is {revision or 'empty'}, but this release needs {head}."
    return None


@cache
def schema_revisions() -> tuple[str, frozenset[str]]:
    """Return the revision that this release needs, and all revisions that it knows.

    Alembic would take 10 MB of memory in every worker.
    """
    scripts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "migrations/versions").glob("*.py")
    )
    known, preceding = (
        frozenset(re.findall(rf'^{name} = "(\w+)"$', scripts, re.MULTILINE))
        for name in ("revision", "down_revision")
    )
    [head] = known - preceding
    return head, known


def is_read_only(connection: sa.Connection) -> bool:
    """Return whether a MySQL or MariaDB server is a replica, even if this user could write to it."""
    row = connection.execute(sa.text("SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only")).one()
    return not all(str(value) in ("0", "OFF") for value in row)


def reason_of(error: BaseException) -> str:
    """Describe an error for the log by its type and code, without the server's message."""
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, Refused) and error.__cause__ is not None:
        error = error.__cause__
    code: object = error_code(getattr(error, "orig", None))
    if isinstance(error, redis.ResponseError):  # its code is the first word, such as MISCONF or OOM
        code = next(iter(re.findall(r"(?:^|caused error: )([A-Z]+)(?= )", str(error))), None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__
