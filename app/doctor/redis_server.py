"""Checks that Redis can do what requests need."""

from collections.abc import Iterator
from typing import Any

import redis
from redis.exceptions import NoPermissionError
from redis.sentinel import MasterNotFoundError

from app.doctor.clocks import check_clock
from app.doctor.redis_nodes import check_redis_nodes, describe_nodes
from app.doctor.result import CheckResult, excerpt, failure, ok, warning
from app.infra.probes import probe_redis
from app.infra.redis_cluster import ClusterPool
from app.infra.redis_keys import KEY_PREFIXES, PERMISSIONS
from app.infra.redis_refusals import Refused

MIN_VERSION = (6, 2, 0)  # GETEX, for sessions

_GRANT_PERMISSIONS = (
    f"Give the user of REDIS_URL the permissions that Backline needs: ACL SETUSER <name> {PERMISSIONS}"
)
_CHECK_PASSWORD = "Check the user name and the password in REDIS_URL."  # noqa: S105
_CHECK_SENTINELS = (
    "No Sentinel responds, or none knows a primary of this name that responds. Check the addresses, the name,"
    " and the password in REDIS_URL. `redis-cli -p 26379 SENTINEL MASTERS` shows the names."
)
_NOT_CLUSTER = "This is a Redis Cluster, which this URL cannot use. Use redis+cluster://host:6379,host:6379."
# Keys are the name of redis-py's error, or part of the server's message.
_ADVICE = {
    "ReadOnlyError": "This server is a replica. REDIS_URL must point to the primary.",
    "MasterDownError": "This replica has lost its primary. REDIS_URL must point to the primary.",
    "'select' command": "Use database 0 in REDIS_URL, or permit others: ACL SETUSER <name> +select.",
    "DB index is out of range": "Use a database in REDIS_URL that exists, such as 0.",
    "cluster support disabled": "This Redis is not a cluster. Use redis://host:6379/0.",
    "unknown command 'CLUSTER'": "These are no nodes of a Redis Cluster. Correct the addresses in REDIS_URL.",
    "NoPermissionError": _GRANT_PERMISSIONS,
    "can't run this command": _GRANT_PERMISSIONS,
    "can't access": _GRANT_PERMISSIONS,
    "OutOfMemoryError": "Redis is full. Raise maxmemory, or use a server for Backline alone.",
    "NOREPLICAS": "Redis accepts no writes until its replicas are back (min-replicas-to-write).",
    "MISCONF": "Redis cannot save to disk, and accepts no writes until it can. See its log.",
    "max number of clients": "Redis accepts no more connections. Raise maxclients, or close other clients.",
    "BusyLoadingError": "Redis is loading its data. Try again in a moment.",
    "AuthenticationError": _CHECK_PASSWORD,
    "NOAUTH": _CHECK_PASSWORD,
    "ClusterCrossSlotError": _NOT_CLUSTER,
    "ClusterDownError": "Too few of the cluster's nodes reach each other. See CLUSTER NODES.",
    "MovedError": _NOT_CLUSTER,
    "AskError": _NOT_CLUSTER,
    "TryAgainError": _NOT_CLUSTER,
}


def check_redis(client: redis.Redis, *, is_production: bool, url: str = "") -> Iterator[CheckResult]:
    """Check the version, every command that Backline uses, the clock, and what happens to stored data."""
    try:
        version = _version(client)
        if version is not None and tuple(int(part) for part in version.split(".")[:3]) < MIN_VERSION:
            yield failure(f"Redis {version}", "Backline needs Redis 6.2 or newer (GETEX).")
            return
        if not isinstance(client.connection_pool, ClusterPool) and _info(client, "cluster").get(
            "cluster_enabled"
        ):
            yield failure("Redis: it is a node of a cluster", _NOT_CLUSTER)
            return
        probe_redis(client)
        forbidden = [prefix for prefix in KEY_PREFIXES if not _may_write(client, f"{prefix}:probe")]
        policy = _eviction_policy(client)
        seconds, microseconds = client.time()  # type: ignore[misc]
        has_log = _info(client, "persistence").get("aof_enabled", 1)
        nodes = list(check_redis_nodes(url, client))
    except (redis.RedisError, TypeError, ValueError) as error:  # the last two: an unknown URL parameter
        yield _describe(error)
        yield from describe_nodes(url, client)
        return
    except LookupError:
        yield failure("Redis: a server replies, but not as Redis does", "Check the addresses in REDIS_URL.")
        return
    if forbidden:
        keys = ", ".join(f"{prefix}:*" for prefix in forbidden)
        yield failure(f"Redis: the user of REDIS_URL may not use {keys}", _GRANT_PERMISSIONS)
        return
    summary = f"Redis {version or '(version not visible to this user)'}"
    if policy != "noeviction":
        yield warning(
            f"{summary}: maxmemory-policy is {policy}",
            "Set it to noeviction. Otherwise, a full Redis signs people out and forgets failed sign-ins.",
        )
    else:
        yield ok(summary)
    if is_production and not has_log:
        yield warning(
            "Redis: appendonly is off",
            "Set appendonly to yes. Otherwise, a crash loses the sessions since the last snapshot, and "
            "brings back those that were signed out since then.",
        )
    yield from nodes
    yield check_clock("Redis", seconds + microseconds / 1e6)


def _version(client: redis.Redis) -> str | None:
    version = _info(client, "server").get("redis_version")
    return None if version is None else str(version)


def _may_write(client: redis.Redis, key: str) -> bool:
    try:
        client.set(key, "", px=1)
    except NoPermissionError:
        return False
    return True


def _eviction_policy(client: redis.Redis) -> str:
    """Return what Redis does when it is full. Without a limit, or permission to ask, assume no eviction."""
    memory = _info(client, "memory")
    return str(memory.get("maxmemory_policy", "noeviction")) if memory.get("maxmemory") else "noeviction"


def _info(client: redis.Redis, section: str) -> dict[str, Any]:
    """Return a section of INFO, which is empty if the user may not see it."""
    try:
        found: Any = client.info(section)
    except NoPermissionError:
        return {}
    return dict(found)


def _describe(error: Exception) -> CheckResult:
    if isinstance(error, Refused) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    name = type(error).__name__
    if isinstance(error, MasterNotFoundError):
        return failure("Redis: the Sentinels name no primary", _CHECK_SENTINELS)
    found = [advice for sign, advice in _ADVICE.items() if sign == name or sign in str(error)]
    if found:
        return failure(f"Redis: {name}: {_message(error)}", found[0])
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return failure(
            f"Redis: cannot connect ({name}: {_message(error)})",
            "Check REDIS_URL, and whether Redis is running.",
        )
    return failure(
        f"Redis: {_message(error)}",
        "Check the parameters of REDIS_URL. It must point to a Redis that allows all commands.",
    )


def _message(error: Exception) -> str:
    """Return the start of what Redis said, without the command, which redis-py adds in a pipeline."""
    return excerpt(str(error).rpartition("caused error: ")[2])
