"""Failovers of Redis that lose the writes of the last moments. They are done by hand, at once."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.helpers.redis_cluster import ClusterDeployment, _run
from tests.helpers.redis_nodes import PASSWORD, PORT, SENTINEL_PORT, SERVICE, RedisNode, _redis, own_network
from tests.helpers.servers import eventually


def cut_replication(primary: RedisNode, replicas: list[RedisNode]) -> None:
    """Let replicas miss everything that is written from now on."""
    for replica in replicas:
        replica.client.config_set("masterauth", "not the password")
    primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]
    eventually(lambda: primary.client.info("replication")["connected_slaves"] == 0, timeout=120)


class LossyDeployment:
    """A primary, a replica, and a Sentinel that names the primary and does not replace it by itself.

    Attributes:
        url: REDIS_URL for an application.
        primary: The first primary.
        replica: The server that takes over.
    """

    def __init__(self, stack: ExitStack, home: Path) -> None:
        network = own_network()
        first, second, third = (f"{network}.{number}" for number in (1, 2, 3))
        self.url = f"redis+sentinel://:{PASSWORD}@{third}/{SERVICE}/0"
        self.primary, self.replica = (
            stack.enter_context(_redis(host, first, home)) for host in (first, second)
        )
        eventually(lambda: self.primary.client.wait(1, 1000) == 1, timeout=120)
        self._sentinel = stack.enter_context(_quiet_sentinel(third, home))
        for node in (self.primary, self.replica, self._sentinel):
            stack.callback(node.client.close)
        self._monitor(self.primary)

    def replicate(self) -> None:
        """Wait until the replica has everything that was written."""
        self.primary.client.set("written", 1)
        eventually(lambda: self.primary.client.wait(1, 1000) == 1, timeout=120)

    def cut_replication(self) -> None:
        """Let the replica miss everything that is written from now on."""
        cut_replication(self.primary, [self.replica])

    def fail_over(self) -> None:
        """Lose the primary, and everything that the replica has missed."""
        self.primary.kill()
        self.replica.client.replicaof("NO", "ONE")
        self._monitor(self.replica)

    def _monitor(self, primary: RedisNode) -> None:
        run = self._sentinel.client.execute_command
        if run("SENTINEL", "MASTERS"):  # type: ignore[no-untyped-call]
            run("SENTINEL", "REMOVE", SERVICE)  # type: ignore[no-untyped-call]
        run("SENTINEL", "MONITOR", SERVICE, primary.host, PORT, 1)  # type: ignore[no-untyped-call]
        run("SENTINEL", "SET", SERVICE, "auth-pass", PASSWORD, "down-after-milliseconds", 3_600_000)  # type: ignore[no-untyped-call]


def fail_over_in_cluster(cluster: ClusterDeployment, key: str) -> RedisNode:
    """Lose the primary of a key, and everything that its replica has missed. Returns the replica."""
    primary = cluster.primary_of(key)
    replica = replica_of(cluster, primary)
    primary.kill()
    _run(replica, "FAILOVER", "TAKEOVER")
    others = [node for node in cluster.nodes if not node.is_unavailable]
    eventually(lambda: all(_names(node, replica, key) for node in others), timeout=120)
    return replica


def replica_of(cluster: ClusterDeployment, primary: RedisNode) -> RedisNode:
    """Return the replica of a primary."""
    return next(node for node in cluster.replicas if node.client.role()[1] == primary.host.encode())


def _names(node: RedisNode, primary: RedisNode, key: str) -> bool:
    slot = int(_run(node, "KEYSLOT", key))
    return any(
        first <= slot <= last and servers[0][0] == primary.host.encode() and servers[0][1] == primary.port
        for first, last, *servers in _run(node, "SLOTS")
    )


def _quiet_sentinel(host: str, home: Path) -> RedisNode:
    return RedisNode(host, SENTINEL_PORT, {}, home, "--sentinel", password=None)


@contextmanager
def lossy_deployment(home: Path) -> Iterator[LossyDeployment]:
    """Run the deployment."""
    with ExitStack() as stack:
        yield LossyDeployment(stack, home)
