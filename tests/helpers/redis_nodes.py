"""Three Redis servers, one of which is the primary, and three Sentinels that watch them."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers.processes import Program
from tests.helpers.servers import eventually, find_program

SERVICE = "main"
PASSWORD = "a-password-for-redis"
PORT, SENTINEL_PORT = 6379, 26379


def own_network() -> str:
    """Return the first three numbers of loopback addresses that nothing else uses."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"


class RedisNode(Program):
    """A Redis server or a Sentinel. Each has an address of its own, so that nothing else uses its port."""

    def __init__(
        self, host: str, port: int, settings: dict[str, str], home: Path, *options: str, password: str | None
    ) -> None:
        self.host, self.port = host, port
        name = f"{host}-{port}"
        file = home / f"{name}.conf"  # Redis and Sentinel write to it
        own = {"bind": host, "port": str(port), "dir": str(home), "protected-mode": "no"}
        own |= {"requirepass": password} if password else {}
        file.write_text("".join(f"{key} {value}\n" for key, value in (own | settings).items()))
        command = [find_program("redis-server", "redis-server"), str(file), *options]
        super().__init__(name, command, home / f"{name}.log")
        retry = Retry(NoBackoff(), 0)
        self.client = redis.Redis(host, port, password=password, socket_timeout=20, retry=retry)

    def is_up(self) -> bool:
        return bool(self.client.ping())

    @property
    def role(self) -> str:
        return str(self.client.role()[0].decode())


@dataclass(frozen=True)
class Host:
    redis: RedisNode
    sentinel: RedisNode

    def kill(self) -> None:
        self.redis.kill()
        self.sentinel.kill()

    def start(self) -> None:
        self.redis.start()
        self.sentinel.start()


class SentinelDeployment:
    """Three hosts, each with a Redis server and a Sentinel. The first Sentinel has no password.

    A Sentinel that could not run for two seconds does nothing for half a minute (TILT mode), so all limits
    are longer.

    Attributes:
        url: REDIS_URL for an application.
        hosts: The hosts by their addresses.
    """

    def __init__(self, stack: ExitStack, home: Path) -> None:
        network = own_network()
        addresses = [f"{network}.{number}" for number in (1, 2, 3)]
        self.url = f"redis+sentinel://:{PASSWORD}@{','.join(addresses)}/{SERVICE}/0"
        servers = [stack.enter_context(_redis(address, addresses[0], home)) for address in addresses]
        # Sentinels that find all replicas when they start need not look again, ten seconds later.
        eventually(lambda: servers[0].client.wait(2, 1000) == 2, timeout=120)
        sentinels = [stack.enter_context(_sentinel(address, addresses[0], home)) for address in addresses]
        self.hosts = {
            address: Host(*pair) for address, *pair in zip(addresses, servers, sentinels, strict=True)
        }
        for node in (*servers, *sentinels):
            stack.callback(node.client.close)
        eventually(lambda: all(map(self._knows_all, sentinels)), timeout=120)

    @property
    def primary(self) -> Host:
        """The host of the server that most Sentinels regard as the primary."""
        host = eventually(self._agreed_primary, timeout=120)
        assert host
        return host

    def replicate(self) -> None:
        """Wait until another server has everything that was written."""
        eventually(lambda: self.primary.redis.client.wait(1, 1000) >= 1, timeout=120)

    def wait_for_failover(self, old: Host) -> None:
        """Wait until the Sentinels have agreed on another primary."""
        eventually(lambda: self.primary is not old and self.primary.redis.role == "master", timeout=120)

    def _agreed_primary(self) -> Host | None:
        running = [host.sentinel for host in self.hosts.values() if not host.sentinel.is_unavailable]
        [(address, votes)] = Counter(_state(sentinel)["ip"] for sentinel in running).most_common(1)
        return self.hosts[address] if votes > len(self.hosts) / 2 else None

    def _knows_all(self, sentinel: RedisNode) -> bool:
        state, others = _state(sentinel), len(self.hosts) - 1
        return bool(state["num-other-sentinels"] == others and state["num-slaves"] == others)


def _state(sentinel: RedisNode) -> dict[str, Any]:
    state: dict[str, Any] = sentinel.client.sentinel_masters()[SERVICE]  # type: ignore[no-untyped-call]
    return state


def _redis(address: str, primary: str, home: Path) -> RedisNode:
    settings = {
        "save": '""',
        "dbfilename": f"{address}.rdb",
        "masterauth": PASSWORD,
        "repl-diskless-sync-delay": "0",
        "replica-announce-ip": address,
    }
    if address != primary:
        settings["replicaof"] = f"{primary} {PORT}"
    return RedisNode(address, PORT, settings, home, password=PASSWORD)


def _sentinel(address: str, primary: str, home: Path) -> RedisNode:
    settings = {
        "sentinel monitor": f"{SERVICE} {primary} {PORT} 2",
        "sentinel auth-pass": f"{SERVICE} {PASSWORD}",
        "sentinel sentinel-pass": PASSWORD,
        "sentinel down-after-milliseconds": f"{SERVICE} 1000",
        "sentinel failover-timeout": f"{SERVICE} 2000",
        "sentinel announce-ip": address,
    }
    password = None if address == primary else PASSWORD
    return RedisNode(address, SENTINEL_PORT, settings, home, "--sentinel", password=password)


@contextmanager
def running_sentinel_deployment(home: Path) -> Iterator[SentinelDeployment]:
    """Run three Redis servers and three Sentinels."""
    with ExitStack() as stack:
        yield SentinelDeployment(stack, home)


@contextmanager
def running_primary_and_sentinel(home: Path) -> Iterator[str]:
    """Run one Redis server with a Sentinel that watches it, and return their address."""
    address = f"{own_network()}.1"
    with _redis(address, address, home) as server, _sentinel(address, address, home) as sentinel:
        yield address
        server.client.close()
        sentinel.client.close()


@contextmanager
def running_sentinel(home: Path) -> Iterator[str]:
    """Run one Sentinel, and return its address. It knows no server that runs."""
    address = f"{own_network()}.1"
    with _sentinel(address, address, home) as sentinel:
        yield address
        sentinel.client.close()
