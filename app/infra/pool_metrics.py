"""Metrics about the pools of connections to the database and to Redis."""

from typing import Any

import redis
import sqlalchemy as sa
from prometheus_client import Counter, Gauge
from sqlalchemy.pool import QueuePool

from app.infra.metrics import best_effort

_CONNECTIONS = Gauge(
    "backline_pool_connections",
    "Connections of all workers, at most a second ago.",
    ["pool", "state"],
    multiprocess_mode="livesum",
)
_MAX_CONNECTIONS = Gauge(
    "backline_pool_max_connections",
    "How many connections all workers may open. Redis' pool has no limit.",
    ["pool"],
    multiprocess_mode="livesum",
)
_WAITS = Counter(
    "backline_pool_waits", "How often a thread had to wait for a connection because none was left.", ["pool"]
)
_waits = {pool: _WAITS.labels(pool) for pool in ("mysql", "redis")}


def count_wait(pool: str) -> None:
    """Count a thread that has to wait for a connection."""
    with best_effort():
        _waits[pool].inc()


def sample(engine: sa.Engine, client: redis.Redis) -> None:
    """Record how many connections this process has. Counting each checkout would slow down requests."""
    found: dict[str, tuple[int, int]] = {}
    with best_effort():
        database_pool: Any = engine.pool
        if isinstance(database_pool, QueuePool):
            found["mysql"] = database_pool.checkedout(), database_pool.checkedin()
            _MAX_CONNECTIONS.labels("mysql").set(database_pool.size() + database_pool._max_overflow)  # noqa: SLF001
        redis_pool: Any = client.connection_pool
        found["redis"] = redis_pool.in_use, redis_pool.idle
        for pool, (in_use, idle) in found.items():
            _CONNECTIONS.labels(pool, "in_use").set(in_use)
            _CONNECTIONS.labels(pool, "idle").set(idle)
