"""The client for Redis, and its pool of connections."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.retry import Retry

from app.infra import pool_metrics
from app.infra.redis_cluster import ClusterPool
from app.infra.redis_connection import CONNECT_SECONDS, MONITORED, TOO_MANY
from app.infra.redis_round_trip import Command, Exchange, Replies, round_trip
from app.infra.redis_sentinel import Sentinels
from app.infra.staleness import Staleness
from app.resilience.connect_guard import ConnectGuard
from app.settings.redis_urls import parse_cluster_url, parse_sentinel_url

# How long a caller waits for another's attempt to connect while Redis is down.
DOWN_SECONDS = 0.05
REPLY_SECONDS = 0.5


class Client(redis.Redis):
    """A client for one server, for the primary of Sentinels, or for a cluster.

    Its commands behave like those in a round trip. It has neither pipelines nor transactions in a cluster.
    """

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send a command, and return its parsed reply.

        Raises:
            redis.RedisError: Redis is not available, or the reply is an error.
        """
        name, *rest = arguments
        [value] = round_trip(self, [(*name.split(), *rest)]).values
        return self.parse_response(_Reply(value), name, **options)  # type: ignore[no-untyped-call]


class _Reply:
    """What redis-py's parsers use of a connection."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def read_response(self, **_: Any) -> Any:
        if isinstance(self._value, redis.RedisError):
            raise self._value
        return self._value


class Pool(redis.ConnectionPool):
    """A connection pool for one server that replaces stale connections.

    Attributes:
        has_replicas: Whether another server takes over if this one fails.
    """

    def __init__(
        self, connection_class: type[Any] = Connection, *, has_replicas: bool = False, **options: Any
    ) -> None:
        self.has_replicas = has_replicas
        self._returned = threading.Condition()
        super().__init__(
            connection_class=MONITORED.get(connection_class, connection_class),
            staleness=Staleness(),
            guard=ConnectGuard(DOWN_SECONDS, CONNECT_SECONDS, _is_reply),
            **options,
        )

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Check out a connection. If Redis accepts no more, wait until one is returned.

        Raises:
            redis.ConnectionError: Redis is unavailable, or no connection was returned in time.
        """
        deadline = time.monotonic() + CONNECT_SECONDS
        has_waited = False
        while True:
            try:
                return super().get_connection(*arguments, **options)
            except redis.ConnectionError as error:
                if TOO_MANY not in str(error) or time.monotonic() > deadline:
                    raise
            if not has_waited:
                has_waited = True
                pool_metrics.count_wait("redis")
            with self._returned:
                self._returned.wait(DOWN_SECONDS)

    def exchange(self, commands: Sequence[Command]) -> Replies:
        """Send commands, and read all replies.

        Raises:
            redis.RedisError: Redis is not available.
        """
        return Exchange(self, commands).read()

    def repeat(self, commands: Sequence[Command], errors: Sequence[redis.RedisError]) -> Replies:
        """Send commands again that were refused with these errors.

        All connections are new since then, or since another failure moments before.

        Raises:
            redis.RedisError: Redis is not available.
        """
        return self.exchange(commands)

    @property
    def in_use(self) -> int:
        """How many connections are checked out."""
        return len(self._in_use_connections)

    @property
    def idle(self) -> int:
        """How many connections are not."""
        return len(self._available_connections)

    def take_warm(self) -> Any | None:
        """Check out a connection that was used moments ago, or return None. Takes no system call.

        For others, `get_connection` asks the socket whether the server has closed it.
        """
        self._checkpid()
        with self._lock:
            if not self._available_connections or not self._available_connections[-1].is_warm():
                return None
            connection = self._available_connections.pop()
            self._in_use_connections.add(connection)
        return connection

    def release_warm(self, connection: Any) -> None:
        """Return a connection to the pool that all replies have been read from."""
        with self._lock:
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)
        with self._returned:
            self._returned.notify()

    def release(self, connection: Any) -> None:
        """Return a connection to the pool, so that connected ones are used first."""
        super().release(connection)
        with self._lock, suppress(ValueError):  # another thread may have taken it
            if connection._sock is None:  # noqa: SLF001
                self._available_connections.remove(connection)
                self._available_connections.insert(0, connection)
        with self._returned:
            self._returned.notify()


def redis_client(url: str) -> Client:
    """Create a client that takes at most half a second to connect, and for each reply. Opens no connection.

    With redis-py's defaults, a stalled server blocks a thread for a minute: ten attempts of five seconds.
    Commands are not retried, because one whose reply was lost may have taken effect.
    """
    options: dict[str, Any] = {
        "socket_timeout": REPLY_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "driver_info": None,  # saves a round trip for each connection, and the permission for CLIENT
    }
    client = Client(connection_pool=_pool(url, options))
    client.auto_close_connection_pool = True
    return client


def _pool(url: str, options: dict[str, Any]) -> Any:
    if cluster := parse_cluster_url(url):
        kind = SSLConnection if cluster.has_tls else Connection
        return ClusterPool(cluster.nodes, Pool, kind, **options | cluster.options)
    if sentinel_url := parse_sentinel_url(url):
        kind = SSLConnection if sentinel_url.has_tls else Connection
        find_primary = Sentinels(sentinel_url).find_primary
        return Pool(kind, has_replicas=True, find_server=find_primary, **options | sentinel_url.options)
    return Pool.from_url(url, **options)


def _is_reply(error: Exception) -> bool:
    """Return whether Redis itself rejected a connection because it has too many."""
    return TOO_MANY in str(error)
