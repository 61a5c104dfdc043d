"""Checks of each host in DATABASE_URL, if it lists several."""

import re
from collections.abc import Iterator

import sqlalchemy as sa

from app.doctor.clocks import check_database_clock
from app.doctor.result import CheckResult, excerpt, failure, ok, warning
from app.infra import mysql
from app.infra.mysql_pool import error_code
from app.infra.probes import is_read_only
from app.settings.database_url import Host, ParsedDatabaseUrl

# After this long without a message, a node counts as failed, and the others continue without it.
MAX_SUSPECT_SECONDS = 2.0
_VARIABLES = sa.text(
    "SHOW VARIABLES WHERE Variable_name IN ('version', 'wsrep_on', 'wsrep_provider_options')"
)
_STATUS = sa.text("SHOW STATUS WHERE Variable_name IN ('wsrep_cluster_size', 'wsrep_local_state_comment')")


def check_hosts(parsed: ParsedDatabaseUrl) -> Iterator[CheckResult]:
    """Check whether each host is reachable and accepts writes, its version, its clock, and its cluster."""
    if len(parsed.hosts) < 2:
        return
    yield ok(
        f"database hosts: {', '.join(map(str, parsed.hosts))}, in this order of preference",
        "Set the same order on all machines, so that one server at a time gets all writes. This check cannot "
        "see the settings of other machines.",
    )
    answers = 0
    for host in parsed.hosts:
        try:
            with _connect(parsed, host) as connection:
                results = list(_check_host(connection, f"database host {host}"))
        except sa.exc.SQLAlchemyError as error:
            yield _unusable(host, error)
        else:
            answers += 1
            yield from results
    if not answers:
        yield failure("database hosts: none is usable", "Start one, or correct DATABASE_URL.")


def _connect(parsed: ParsedDatabaseUrl, host: Host) -> sa.Connection:
    engine = sa.create_engine(parsed.url, poolclass=sa.NullPool)
    mysql.use_hosts(engine, [host])
    return engine.connect()


def _unusable(host: Host, error: sa.exc.SQLAlchemyError) -> CheckResult:
    cause = getattr(error, "orig", None) or error
    if error_code(cause) == 1047:
        return warning(
            f"database host {host}: it has left its Galera cluster",
            "It rejoins by itself when it reaches the others. If it does not, restart it.",
        )
    return warning(
        f"database host {host}: {error_code(cause) or ''} {excerpt(cause.args[-1] if cause.args else '')}",
        "The others are used meanwhile. Start it, or correct DATABASE_URL.",
    )


def _check_host(connection: sa.Connection, name: str) -> Iterator[CheckResult]:
    found = {row[0]: str(row[1]) for row in connection.execute(_VARIABLES)}
    is_replica = is_read_only(connection)
    role = "read-only: used only while no host accepts writes" if is_replica else "accepts writes"
    yield ok(f"{name}: {found['version']}, {role}")
    yield check_database_clock(name, connection)
    if found.get("wsrep_on") == "ON":
        status = {row[0]: str(row[1]) for row in connection.execute(_STATUS)}
        yield from _check_galera(name, status, found["wsrep_provider_options"])


def _check_galera(name: str, status: dict[str, str], options: str) -> Iterator[CheckResult]:
    size = int(status["wsrep_cluster_size"])
    timeouts = dict(re.findall(r"(evs\.(?:suspect|inactive)_timeout) = PT([0-9.]+)S", options))
    shown = ", ".join(f"{key} {value} s" for key, value in sorted(timeouts.items()))
    yield ok(f"{name}: {status['wsrep_local_state_comment']} in a Galera cluster of {size} ({shown})")
    if size < 3:
        yield warning(
            f"{name}: its Galera cluster has only {size} members now",
            "Run three or more (an arbitrator, garbd, counts): of two, neither continues if one is cut off.",
        )
    if float(timeouts.get("evs.suspect_timeout", 5)) > MAX_SUSPECT_SECONDS:
        yield warning(
            f"{name}: the others wait {timeouts.get('evs.suspect_timeout', 5)} s for it when it fails",
            "For shorter failovers, set wsrep_provider_options = "
            "'evs.suspect_timeout=PT1.5S; evs.inactive_timeout=PT3S' on all nodes.",
        )
