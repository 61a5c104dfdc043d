"""Redis Cluster: which node has which keys, and the connections to all nodes.

This is not redis-py's `RedisCluster`: that connects when it is constructed, waits for longer than a request
may take, and sends commands one after another.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, TryAgainError

from app.infra.redis_connection import CONNECT_SECONDS
from app.infra.redis_round_trip import Command, Exchange, Replies
from app.resilience.connect_guard import ConnectGuard
from app.settings.redis_urls import Address

# How long a caller waits for another's attempt to look nodes up while none responds.
DOWN_SECONDS = 0.05

_KEYLESS = {"ACL", "ASKING", "CLUSTER", "CONFIG", "INFO", "PING", "SCRIPT", "TIME", "WAIT"}
_SCRIPTS = {"EVAL", "EVALSHA"}


def slot_of(command: Command) -> int | None:
    """Return the slot of a command's first key, or None if it has no key."""
    name = command[0].decode() if isinstance(command[0], bytes) else str(command[0])
    if name in _KEYLESS:
        return None
    position = 1 if name not in _SCRIPTS else 3
    if len(command) <= position or (name in _SCRIPTS and command[2] == 0):
        return None
    key = command[position]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


@dataclass(frozen=True)
class SlotMap:
    """Which node is the primary of each slot, as one node has described it. Times are `time.monotonic`.

    Attributes:
        primaries: The address by slot. None for a slot that no node serves.
        nodes: All nodes, with replicas.
        loaded_at: When it was loaded.
        changed_at: When a map was loaded that differs from the one before.
    """

    primaries: tuple[Address | None, ...]
    nodes: tuple[Address, ...]
    loaded_at: float
    changed_at: float

    def primary_of(self, command: Command) -> Address | None:
        """Return where to send a command, or None if it has no key.

        Raises:
            redis.ConnectionError: No node serves its key.
        """
        slot = slot_of(command)
        if slot is None:
            return None
        address = self.primaries[slot]
        if address is None:
            raise redis.ConnectionError("no node of the cluster serves this key")
        return address

    def tags(self) -> list[str]:
        """Return a hash tag for each primary that has slots, which leads to that primary."""
        missing = set(self.primaries) - {None}
        found: list[str] = []
        for number in count():
            if not missing:
                return found
            tag = f"probe-{number}"
            address = self.primaries[key_slot(tag.encode())]
            if address in missing:
                missing.remove(address)
                found.append(tag)
        raise AssertionError  # `count` does not end


class ClusterPool(redis.ConnectionPool):
    """Pools of connections to all nodes of a cluster.

    Args:
        seeds: The addresses of some nodes.
        make_pool: Creates the pool of one node.
        connection_class: The class of connections.
        options: Options of connections.
    """

    has_replicas = True

    def __init__(
        self,
        seeds: Iterable[Address],
        make_pool: Callable[..., Any],
        connection_class: type[Any],
        **options: Any,
    ) -> None:
        self._seeds, self._make_pool = tuple(seeds), make_pool
        self._pools: dict[Address, Any] = {}
        self._pools_lock = threading.Lock()
        self._slots: SlotMap | None = None
        self._doubted_at = 0.0
        # Which node to ask for the slots first, and which last.
        self._preferred: Address | None = None
        self._suspect: Address | None = None
        self._guard = ConnectGuard(DOWN_SECONDS, CONNECT_SECONDS)
        super().__init__(connection_class, **options)

    def exchange(self, commands: Sequence[Command]) -> Replies:
        """Send commands to the nodes that have their keys, and read all replies.

        Raises:
            redis.RedisError: One of the nodes is not available.
        """
        slots = self.slots()
        try:
            addresses = [slots.primary_of(command) for command in commands]
        except redis.ConnectionError:
            self._doubt(slots)
            raise
        first = next(filter(None, (*addresses, *slots.primaries)), self._seeds[0])
        groups: dict[Address, list[int]] = {}
        for number, address in enumerate(addresses):
            groups.setdefault(address or first, []).append(number)
        return self._exchange(slots, groups, commands)

    def repeat(self, commands: Sequence[Command], errors: Sequence[redis.RedisError]) -> Replies:
        """Send commands again that were refused with these errors.

        Raises:
            redis.RedisError: One of the nodes is not available.
        """
        moving = (AskError, TryAgainError)
        for error in errors:
            if type(error) not in moving:
                self._doubt(self._slots, preferred=error.node_addr if isinstance(error, MovedError) else None)
        if not any(type(error) is AskError for error in errors):
            return self.exchange(commands)
        return self._ask(commands, errors)

    def slots(self) -> SlotMap:
        """Return which node has which slot. Looks it up if that is not known, or doubtful.

        Raises:
            redis.ConnectionError: No node responds.
        """
        slots = self._slots
        if slots is None or slots.loaded_at <= self._doubted_at:
            busy = redis.ConnectionError("another thread is looking up the nodes of the cluster")
            slots = self._guard.connect(self._load, busy)
        return slots

    def pool_of(self, address: Address) -> Any:
        """Return the pool of connections to one node."""
        with self._pools_lock:
            if address not in self._pools:
                host, port = address
                self._pools[address] = self._make_pool(
                    self.connection_class, host=host, port=port, **self.connection_kwargs
                )
            return self._pools[address]

    @property
    def in_use(self) -> int:
        """How many connections are checked out."""
        return sum(pool.in_use for pool in list(self._pools.values()))

    @property
    def idle(self) -> int:
        """How many connections are not."""
        return sum(pool.idle for pool in list(self._pools.values()))

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Raise an error: which connection to use depends on the key.

        Raises:
            redis.RedisError: Always.
        """
        raise redis.RedisError("pipelines and subscriptions do not work in a cluster")

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections to all nodes."""
        for pool in list(self._pools.values()):
            pool.disconnect(inuse_connections)

    def _exchange(
        self, slots: SlotMap, groups: dict[Address, list[int]], commands: Sequence[Command]
    ) -> Replies:
        """Send each node its commands, given by their numbers, and read all replies."""
        values: list[Any] = [None] * len(commands)
        merged = Replies(values, slots.changed_at)
        sent: list[tuple[Address, Exchange]] = []
        address = self._seeds[0]
        try:
            for address, numbers in groups.items():
                own = [commands[number] for number in numbers]
                sent.append((address, Exchange(self.pool_of(address), own)))
            while sent:
                address, exchange = sent.pop(0)
                replies = exchange.read()
                for number, value in zip(groups[address], replies.values, strict=True):
                    values[number] = value
                merged.connected_at = max(merged.connected_at, replies.connected_at)
                merged.has_refusals = merged.has_refusals or replies.has_refusals
        except (redis.ConnectionError, redis.TimeoutError):
            self._doubt(slots, suspect=address)
            raise
        finally:
            for _, exchange in sent:
                exchange.abandon()
        return merged

    def _ask(self, commands: Sequence[Command], errors: Sequence[redis.RedisError]) -> Replies:
        """Send commands again, one by one, some of them to the nodes that slots are being moved to."""
        merged = Replies([], 0.0)
        for command, error in zip(commands, errors, strict=True):
            if type(error) is AskError:
                replies = self.pool_of(error.node_addr).exchange([("ASKING",), command])
            else:
                replies = self.exchange([command])
            merged.values.append(replies.values[-1])
            merged.connected_at = max(merged.connected_at, replies.connected_at)
        return merged

    def _doubt(
        self, slots: SlotMap | None, *, preferred: Address | None = None, suspect: Address | None = None
    ) -> None:
        """Look the nodes up before the next exchange, unless that has been done since `slots`."""
        if slots is not self._slots:
            return
        self._preferred, self._suspect = preferred or self._preferred, suspect
        self._doubted_at = time.monotonic()
        self._guard.report_failure()

    def _load(self) -> SlotMap:
        """Ask one node after another for the slots.

        Raises:
            redis.RedisError: None has told them in time.
        """
        began_at, old = time.monotonic(), self._slots
        if old is not None and old.loaded_at > self._doubted_at:
            return old  # another thread has just done so
        problem: redis.RedisError = redis.ConnectionError("no node of the cluster responds")
        for address in self._candidates():
            try:
                [found] = self.pool_of(address).exchange([("CLUSTER", "SLOTS")]).values
            except redis.RedisError as error:
                found = error
            if not isinstance(found, redis.RedisError):
                self._slots, self._preferred = _slot_map(found, address, old), address
                return self._slots
            problem, self._suspect = found, address
            if time.monotonic() - began_at > CONNECT_SECONDS:
                break
        raise problem

    def _candidates(self) -> list[Address]:
        """Return all known nodes, in the order in which to ask them."""
        known = self._slots.nodes if self._slots is not None else ()
        preferred = (self._preferred,) if self._preferred is not None else ()
        candidates = dict.fromkeys((*preferred, *known, *self._seeds))
        return sorted(candidates, key=lambda address: address == self._suspect)


def _slot_map(found: Any, asked: Address, old: SlotMap | None) -> SlotMap:
    """Read the reply to CLUSTER SLOTS. A node without a known address is the one that was asked."""
    primaries: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    nodes: list[Address] = []
    for first, last, *servers in found:
        addresses = [(_host(server[0]) or asked[0], int(server[1])) for server in servers]
        primaries[first : last + 1] = [addresses[0]] * (last + 1 - first)
        nodes += addresses
    now = time.monotonic()
    is_same = old is not None and old.primaries == tuple(primaries)
    changed_at = old.changed_at if old is not None and is_same else now
    return SlotMap(tuple(primaries), tuple(dict.fromkeys(nodes)), now, changed_at)


def _host(host: bytes | None) -> str:
    return "" if host is None or host == b"?" else host.decode()
