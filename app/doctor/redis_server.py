"""Checks that Redis can do what requests need."""

from typing import Any

import redis
from redis.exceptions import NoPermissionError

from app.doctor.result import CheckResult, excerpt, failure, ok, warning
from app.infra.probes import probe_redis

MIN_VERSION = (6, 2, 0)  # GETEX, for sessions

PERMISSIONS = "~* +@read +@write +@scripting +@transaction +time +ping +info"
_GRANT_PERMISSIONS = (
    f"Give the user of REDIS_URL the permissions that Backline needs: ACL SETUSER <name> {PERMISSIONS}"
)
_CHECK_PASSWORD = "Check the user name and the password in REDIS_URL."  # noqa: S105
_NOT_CLUSTER = "This is a Redis Cluster, which this URL cannot use. Use a single Redis."
# Keys are the name of redis-py's error, or part of the server's message.
_ADVICE = {
    "ReadOnlyError": "This server is a replica. REDIS_URL must point to the primary.",
    "MasterDownError": "This replica has lost its primary. REDIS_URL must point to the primary.",
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
    "ClusterDownError": _NOT_CLUSTER,
    "MovedError": _NOT_CLUSTER,
    "AskError": _NOT_CLUSTER,
    "TryAgainError": _NOT_CLUSTER,
}


def check_redis(client: redis.Redis) -> CheckResult:
    """Check the version, every command that Backline uses, and what Redis does when it is full."""
    try:
        version = _version(client)
        if version is not None and tuple(int(part) for part in version.split(".")[:3]) < MIN_VERSION:
            return failure(f"Redis {version}", "Backline needs Redis 6.2 or newer (GETEX).")
        probe_redis(client)
        policy = _eviction_policy(client)
    except (redis.RedisError, TypeError, ValueError) as error:  # the last two: an unknown URL parameter
        return _describe(error)
    summary = f"Redis {version or '(version not visible to this user)'}"
    if policy != "noeviction":
        return warning(
            f"{summary}: maxmemory-policy is {policy}",
            "Set it to noeviction. Otherwise, a full Redis signs people out and forgets failed sign-ins.",
        )
    return ok(summary)


def _version(client: redis.Redis) -> str | None:
    try:
        server: Any = client.info("server")
    except NoPermissionError:
        return None
    return str(server.get("redis_version", "0"))


def _eviction_policy(client: redis.Redis) -> str:
    """Return what Redis does when it is full. Without a limit, or permission to ask, assume no eviction."""
    try:
        memory: Any = client.info("memory")
    except NoPermissionError:
        return "noeviction"
    return str(memory.get("maxmemory_policy", "noeviction")) if memory.get("maxmemory") else "noeviction"


def _describe(error: Exception) -> CheckResult:
    name = type(error).__name__
    found = [advice for sign, advice in _ADVICE.items() if sign == name or sign in str(error)]
    if found:
        return failure(f"Redis: {name}", found[0])
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return failure(f"Redis: cannot connect ({name})", "Check REDIS_URL, and whether Redis is running.")
    message = str(error).rpartition("caused error: ")[2]  # without the command, in a pipeline
    return failure(
        f"Redis: {excerpt(message)}",
        "Check the parameters of REDIS_URL. It must point to a Redis that allows all commands.",
    )
