"""Deletes everything in Redis, for `deploy/restore`: one server, the primary of Sentinels, or a cluster.

    python -m deploy.empty_redis [--check]

`--check` only finds out whether REDIS_URL can be used. FLUSHDB is not among Backline's permissions.
"""

import sys
from typing import Any

import redis

from app.infra.probes import probe_redis
from app.infra.redis_client import redis_client
from app.infra.redis_cluster import ClusterPool
from config import load

# Deletes some keys of the server that has KEYS[1], and returns where to continue.
_DELETE_SOME = """
local found = redis.call("SCAN", ARGV[1], "COUNT", 1000)
for _, key in ipairs(found[2]) do redis.call("UNLINK", key) end
return found[1]
"""


def empty(client: redis.Redis) -> None:
    """Delete all keys.

    Raises:
        redis.RedisError: A server is unavailable.
    """
    pool: Any = client.connection_pool
    for tag in pool.slots().tags() if isinstance(pool, ClusterPool) else [""]:
        cursor: Any = client.eval(_DELETE_SOME, 1, f"probe:{{{tag}}}", 0)
        while cursor != b"0":
            cursor = client.eval(_DELETE_SOME, 1, f"probe:{{{tag}}}", cursor)


def main() -> None:
    """Empty the Redis of `.env`, or only check that it can be used."""
    client = redis_client(load().redis_url)
    try:
        probe_redis(client)
        if sys.argv[1:] != ["--check"]:
            empty(client)
    except redis.RedisError as error:
        sys.exit(f"REDIS_URL cannot be used ({type(error).__name__}): see flask doctor.")


if __name__ == "__main__":
    main()
