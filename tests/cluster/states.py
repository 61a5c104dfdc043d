"""What works on a host: its node of the database, Redis, Sentinel, and the API."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import redis
import requests
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

HOSTS = 3
SERVICE = "backline"
SYNCED = "4"
CLUSTER_PORTS = (7001, 7002)
SENTINEL_PORTS = (6379, 26379)


def problem_of(
    engine: sa.Engine, address: str, password: str, http: requests.Session, redis: str
) -> str | None:
    """Return what does not work on a host with this kind of Redis, or None."""
    return (
        _database_problem(engine)
        or (_cluster_problem if redis == "cluster" else _sentinel_problem)(address, password)
        or _api_problem(address, http)
    )


def _database_problem(engine: sa.Engine) -> str | None:
    status = galera_status(engine)
    if status["wsrep_cluster_size"] != str(HOSTS):
        return f"the node sees {status['wsrep_cluster_size']} nodes"
    if status["wsrep_local_state"] != SYNCED or status["wsrep_ready"] != "ON":
        return f"the node is {status['wsrep_local_state_comment']}"
    return None


def is_synced(engine: sa.Engine) -> bool:
    """Return whether a node has caught up with the others."""
    with suppress(sa.exc.OperationalError):
        return galera_status(engine)["wsrep_local_state"] == SYNCED
    return False


def galera_status(engine: sa.Engine) -> dict[str, str]:
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SHOW GLOBAL STATUS LIKE 'wsrep\\_%'")).all()
    return {row[0]: row[1] for row in rows}


def _redis(
    address: str, port: int, password: str | None, username: str | None = "servers", seconds: float = 5
) -> redis.Redis:
    return redis.Redis(
        address,
        port,
        username=username,
        password=password,
        socket_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def _sentinel_problem(address: str, password: str) -> str | None:
    with _redis(address, 6379, password) as client:
        info: dict[str, Any] = client.info("replication")
    if info["role"] == "master" and info["connected_slaves"] != HOSTS - 1:
        return "Redis lacks a replica"
    if info["role"] != "master" and info["master_link_status"] != "up":
        return "Redis does not replicate"
    state = sentinel_state(address, password)
    if "down" in state["flags"]:
        return f"Sentinel sees the primary as {state['flags']}"
    if state["num-other-sentinels"] != HOSTS - 1:
        return "Sentinel does not see the others"
    return None


def _cluster_problem(address: str, password: str) -> str | None:
    for port in CLUSTER_PORTS:
        with _redis(address, port, password) as client:
            info: dict[str, Any] = client.info("replication")
            nodes: dict[str, Any] = client.execute_command("CLUSTER NODES")
        if any("fail" in node["flags"] or not node["connected"] for node in nodes.values()):
            return "Redis misses a node of the cluster"
        if info["role"] == "master" and info["connected_slaves"] != 1:
            return "Redis lacks a replica"
        if info["role"] != "master" and info["master_link_status"] != "up":
            return "Redis does not replicate"
    return None


def is_primary(address: str, port: int, password: str) -> bool:
    """Return whether a process of Redis runs, and is a primary."""
    with _redis(address, port, password) as client, suppress(redis.RedisError):
        return bool(client.info("replication")["role"] == "master")
    return False


def sentinel_state(address: str, password: str) -> dict[str, Any]:
    with _redis(address, 26379, password) as client:
        masters: dict[str, dict[str, Any]] = client.sentinel_masters()
    return masters[SERVICE]


def is_in_tilt(address: str, password: str) -> bool:
    """Return whether a Sentinel distrusts its clock, and takes part in no failover.

    Source: https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#tilt-mode
    """
    with _redis(address, 26379, password) as client:
        return bool(client.info("sentinel")["sentinel_tilt"])


def redis_primary(addresses: Sequence[str], password: str) -> str | None:
    """Return the address of the primary, according to any Sentinel."""
    for address in addresses:
        try:
            return str(sentinel_state(address, password)["ip"])
        except redis.RedisError:
            continue
    return None


def _api_problem(address: str, http: requests.Session) -> str | None:
    response = http.get(f"http://{address}:5000/readyz", headers={"Host": "api.example.com"}, timeout=20)
    return None if response.status_code == 200 else "the API is not ready"


def excessive_rights_in_database(url: sa.URL) -> Iterator[str]:
    """Try to change the schema with the API's account."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS forbidden (id INT)"))
    except sa.exc.DBAPIError as error:
        if "CREATE command denied" in str(error):
            return
        raise
    yield "the API's account may create tables"


def excessive_rights_in_redis(address: str, password: str, kind: str) -> Iterator[str]:
    """Try the servers without a password, and what the API's account may not do."""
    for port in CLUSTER_PORTS if kind == "cluster" else SENTINEL_PORTS:
        stranger = _redis(address, port, None, None, seconds=60)
        with stranger, suppress(AuthenticationError):
            stranger.ping()
            yield f"{address}:{port} responds without a password"
        api = _redis(address, port, password, "backline", seconds=60)
        with api, suppress(NoPermissionError):
            api.acl_list()
            yield f"the API's account may read the accounts of {address}:{port}"


def checksums(engine: sa.Engine, tables: Sequence[str]) -> dict[str, int]:
    """Return the checksum of each table on one node."""
    with engine.connect() as connection:
        connection.execute(sa.text("SET SESSION wsrep_sync_wait = 1"))
        connection.execute(sa.text(f"SELECT 1 FROM {tables[0]} LIMIT 1"))  # waits for what others committed
        rows = connection.execute(sa.text(f"CHECKSUM TABLE {', '.join(tables)}")).all()
    return {row[0].partition(".")[2]: row[1] for row in rows}
