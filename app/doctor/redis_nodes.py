"""Checks each Sentinel, or each primary of a Redis Cluster."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import redis

from app.doctor.result import CheckResult, excerpt, failure, ok, warning
from app.infra.redis_cluster import ClusterPool, SlotMap
from app.infra.redis_round_trip import values_of
from app.infra.redis_sentinel import Sentinels
from app.settings.redis_urls import parse_sentinel_url

# With more, a failover takes longer than /readyz waits for one.
MAX_DOWN_AFTER_MS = 2000
_CHECK_SENTINEL = (
    "Check whether it runs and is a Sentinel, its address and the service in REDIS_URL, and the password and "
    "permissions there (sentinel|masters, sentinel|master). The others continue without it."
)
_UNREACHABLE = (
    "Start it, or correct its address: Sentinels name the one in `sentinel monitor`, or that which a replica "
    "announces (replica-announce-ip)."
)
_ANNOUNCED = "This machine must reach these addresses. See cluster-announce-ip."

_SAME_PRIMARY = (
    "Sentinels that disagree for longer than a failover takes do not know each other. See their logs."
)
_DOWN_AFTER = "Set down-after-milliseconds to 1000. Until a failover begins, people get 503."
_MIN_REPLICAS = (
    "Set min-replicas-to-write to 1 and min-replicas-max-lag to 2. Otherwise, a primary that is cut off "
    "accepts writes that a failover loses."
)
_NO_REPLICA = "Add a replica. Otherwise, its sessions are gone if this server fails."


def check_redis_nodes(url: str, client: redis.Redis) -> Iterator[CheckResult]:
    """Check what a failover depends on. Yields nothing for a single server.

    Raises:
        redis.RedisError: Redis is not available, or rejects a command.
    """
    pool: Any = client.connection_pool
    if pool.has_replicas:
        values_of(client, [("WAIT", 0, 0)])  # signing out needs it; accounts of earlier releases lack it
    if sentinel_url := parse_sentinel_url(url):
        yield from _check_sentinels(Sentinels(sentinel_url).states())
        found: Any = client.info("replication")
        yield from _check_primary("the primary", found)
    elif isinstance(pool, ClusterPool):
        yield from _check_cluster(pool, client)


def describe_nodes(url: str, client: redis.Redis) -> Iterator[CheckResult]:
    """Describe what Sentinels or nodes of a cluster say while Redis cannot be used."""
    pool: Any = client.connection_pool
    if sentinel_url := parse_sentinel_url(url):
        yield from _check_sentinels(Sentinels(sentinel_url).states())
    elif isinstance(pool, ClusterPool):
        with suppress(redis.RedisError):
            slots = pool.slots()
            yield from _check_slots(slots)
            if nodes := ", ".join(f"{host}:{port}" for host, port in slots.nodes):
                yield warning(f"Redis: the cluster says that its nodes are {nodes}", _ANNOUNCED)


def _check_sentinels(states: dict[str, dict[str, Any] | redis.RedisError]) -> Iterator[CheckResult]:
    first: str | None = None
    for address, state in states.items():
        if isinstance(state, redis.RedisError):
            reason = f"{type(state).__name__}: {excerpt(str(state))}"
            yield warning(f"Redis: Sentinel {address}: {reason}", _CHECK_SENTINEL)
            continue
        primary = f"{state['ip']}:{state['port']}"
        first = first or primary
        sentinels, delay = state["num-other-sentinels"] + 1, state["down-after-milliseconds"]
        summary = (
            f"Redis: Sentinel {address}: the primary is {primary} (quorum {state['quorum']} of {sentinels}, "
            f"down after {delay} ms)"
        )
        if state["is_sdown"]:
            yield warning(f"{summary}; it does not respond", _UNREACHABLE)
        elif primary != first:
            yield warning(summary, _SAME_PRIMARY)
        elif delay > MAX_DOWN_AFTER_MS:
            yield warning(summary, _DOWN_AFTER)
        else:
            yield ok(summary)


def _check_cluster(pool: ClusterPool, client: redis.Redis) -> Iterator[CheckResult]:
    slots = pool.slots()
    yield from _check_slots(slots)
    for host, port in sorted({address for address in slots.primaries if address is not None}):
        count = slots.primaries.count((host, port))
        [raw] = pool.pool_of((host, port)).exchange([("INFO", "replication")]).values
        if isinstance(raw, redis.RedisError):
            raise raw
        found = client.response_callbacks["INFO"](raw)
        yield from _check_primary(f"{host}:{port} ({count} slots)", found)


def _check_slots(slots: SlotMap) -> Iterator[CheckResult]:
    if missing := slots.primaries.count(None):
        yield failure(
            f"Redis: no node of the cluster serves {missing} slots", "See CLUSTER NODES and CLUSTER INFO."
        )


def _check_primary(name: str, found: dict[str, Any]) -> Iterator[CheckResult]:
    """Check INFO about replication. `min_slaves_good_slaves` is there only if a minimum is set."""
    replicas = found.get("connected_slaves", 0)
    summary = f"Redis: replicas of {name}: {replicas}"
    if not replicas:
        yield warning(summary, _NO_REPLICA)
    elif "min_slaves_good_slaves" not in found:
        yield warning(f"{summary}; min-replicas-to-write is 0", _MIN_REPLICAS)
    else:
        yield ok(summary)
