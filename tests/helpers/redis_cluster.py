"""A Redis Cluster of three primaries, each with a replica if a test needs failovers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from tests.helpers.redis_nodes import RedisNode, own_network
from tests.helpers.servers import eventually

PORT, REPLICA_PORT = 6379, 6380
CLUSTER_SCHEME = "redis+cluster://"


class ClusterDeployment:
    """Nodes with addresses of their own. `redis-cli --cluster create` does the same, but takes longer.

    Attributes:
        url: REDIS_URL for an application.
        primaries: The nodes that have slots at the beginning.
        replicas: The nodes that have none.
    """

    def __init__(self, stack: ExitStack, home: Path, *, with_replicas: bool = False) -> None:
        network = own_network()
        addresses = [f"{network}.{number}" for number in (1, 2, 3)]
        self.url = f"{CLUSTER_SCHEME}{','.join(addresses)}"
        # Without replicas, no node may count as failed because the machine is busy.
        timeout = 2000 if with_replicas else 60_000
        self.primaries = [stack.enter_context(_node(address, PORT, home, timeout)) for address in addresses]
        replica_addresses = addresses if with_replicas else []
        self.replicas = [
            stack.enter_context(_node(address, REPLICA_PORT, home, timeout)) for address in replica_addresses
        ]
        self.nodes = [*self.primaries, *self.replicas]
        for node in self.nodes:
            stack.callback(node.client.close)
        share = REDIS_CLUSTER_HASH_SLOTS // len(self.primaries) + 1
        for number, node in enumerate(self.primaries):
            last = min((number + 1) * share, REDIS_CLUSTER_HASH_SLOTS) - 1
            _run(node, "ADDSLOTSRANGE", number * share, last)
            _run(node, "SET-CONFIG-EPOCH", number + 1)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            _run(node, "MEET", first.host, first.port)
        eventually(lambda: all(self._knows_all(node) for node in self.nodes), timeout=120)
        for number, replica in enumerate(self.replicas):
            primary = self.primaries[(number + 1) % len(self.primaries)]  # of another host
            _run(replica, "REPLICATE", _run(primary, "MYID"))
        self.wait_until_ok()

    def wait_until_ok(self) -> None:
        """Wait until all nodes agree that all slots are served."""
        eventually(lambda: all(map(self._is_ok, self.nodes)), timeout=120)

    def set_slot(self, node: RedisNode, key: str, state: str, other: RedisNode) -> None:
        """Tell a node what happens to the slot of a key: `IMPORTING`, `MIGRATING`, or `NODE`."""
        _run(node, "SETSLOT", _run(node, "KEYSLOT", key), state, _run(other, "MYID"))

    def primary_of(self, key: str) -> RedisNode:
        """Return the node that serves a key now, according to the nodes that run."""
        slot = int(_run(self._running()[0], "KEYSLOT", key))
        for first, last, (host, port, *_), *_others in _run(self._running()[0], "SLOTS"):
            if first <= slot <= last:
                return next(n for n in self.nodes if (n.host, n.port) == (host.decode(), port))
        raise AssertionError(f"no node serves {key}")

    def flush(self) -> None:
        """Delete all keys."""
        for node in self.primaries:
            node.client.flushall()

    def _running(self) -> list[RedisNode]:
        return [node for node in self.nodes if not node.is_unavailable]

    def _knows_all(self, node: RedisNode) -> bool:
        return f"cluster_known_nodes:{len(self.nodes)}" in _run(node, "INFO").decode()

    def _is_ok(self, node: RedisNode) -> bool:
        servers = {tuple(server[:2]) for _, _, *ranges in _run(node, "SLOTS") for server in ranges}
        return "cluster_state:ok" in _run(node, "INFO").decode() and len(servers) == len(self.nodes)


def is_cluster(url: str) -> bool:
    return url.startswith(CLUSTER_SCHEME)


def direct_client(url: str) -> redis.Redis:
    """Return redis-py's own client for a URL, for tests that look at what is stored."""
    if not is_cluster(url):
        return _OneKeyClient.from_url(url)
    client: Any = _DirectClient(url.removeprefix(CLUSTER_SCHEME).split(",")[0], PORT)
    return cast("redis.Redis", client)


class _OneKeyClient(redis.Redis):
    def delete(self, *keys: Any) -> Any:
        """Delete keys one by one, like redis-py's client for a cluster."""
        return sum(super(_OneKeyClient, self).delete(key) for key in keys)

    def exists(self, *keys: Any) -> Any:
        """Look for keys one by one."""
        return sum(super(_OneKeyClient, self).exists(key) for key in keys)


class _DirectClient(redis.RedisCluster):
    def keys(self, pattern: Any = "*", **_: Any) -> Any:
        return super().keys(pattern, target_nodes=self.PRIMARIES)  # otherwise, those of one node


def ask_all_nodes(client: redis.Redis) -> None:
    """Let tests send KEYS, FLUSHALL, and CONFIG SET to all nodes with a client of the product."""

    def ask(*command: str) -> list[Any]:
        pool: Any = client.connection_pool
        nodes = set(pool.slots().primaries) - {None}
        return [reply for node in nodes for reply in pool.pool_of(node).exchange([command]).values]

    everywhere: Any = client
    everywhere.keys = lambda pattern="*": [key for keys in ask("KEYS", pattern) for key in keys]
    everywhere.config_set = lambda name, value: ask("CONFIG", "SET", name, value)
    everywhere.flushdb = everywhere.flushall = lambda: ask("FLUSHALL")


def _run(node: RedisNode, *command: str | int | bytes) -> Any:
    return node.client.execute_command("CLUSTER", *command)  # type: ignore[no-untyped-call]


def _node(address: str, port: int, home: Path, timeout_ms: int) -> RedisNode:
    settings = {
        "save": '""',
        "cluster-enabled": "yes",
        "cluster-config-file": f"nodes-{address}-{port}.conf",
        "cluster-announce-ip": address,
        "cluster-node-timeout": str(timeout_ms),
        "repl-diskless-sync-delay": "0",
    }
    return RedisNode(address, port, settings, home, password=None)


@contextmanager
def running_cluster(home: Path, *, with_replicas: bool = False) -> Iterator[ClusterDeployment]:
    """Run a Redis Cluster."""
    with ExitStack() as stack:
        yield ClusterDeployment(stack, home, with_replicas=with_replicas)
