"""Connections to Redis: opened within one deadline, and replaced when they lead to the wrong server."""

import socket
import threading
import time
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from app.infra import pool_metrics, sockets
from app.infra.staleness import Staleness
from app.resilience.connect_guard import ConnectGuard

# How long a caller waits for another's attempt to connect while Redis is down.
DOWN_SECONDS = 0.05
CONNECT_SECONDS = 0.5
REPLY_SECONDS = 0.5

# A connection that was used this recently counts as open.
WARM_SECONDS = 0.01

_TOO_MANY = "max number of clients reached"
# Errors about stored data, not about the server.
_DATA_ERRORS = ("no such key", "WRONGTYPE")


class Pool(redis.ConnectionPool):
    """A connection pool that replaces stale connections."""

    def __init__(self, connection_class: type[Any] = Connection, **options: Any) -> None:
        self._returned = threading.Condition()
        super().__init__(
            connection_class=_MONITORED.get(connection_class, connection_class),
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
                if _TOO_MANY not in str(error) or time.monotonic() > deadline:
                    raise
            if not has_waited:
                has_waited = True
                pool_metrics.count_wait("redis")
            with self._returned:
                self._returned.wait(DOWN_SECONDS)

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


class _Monitored:
    """A connection that watches for errors, and reconnects when it is stale."""

    def __init__(self, *, staleness: Staleness, guard: ConnectGuard, **options: Any) -> None:
        self._staleness, self._guard = staleness, guard
        self.connected_at = self._used_at = 0.0
        self._is_connecting = False
        super().__init__(**options)

    def is_warm(self) -> bool:
        """Return whether the connection worked moments ago, and nothing has failed since."""
        return (
            self._sock is not None  # type: ignore[attr-defined]
            and time.monotonic() - self._used_at < WARM_SECONDS
            and not self._staleness.is_stale(self.connected_at, self._used_at)
        )

    def connect(self) -> None:
        if self._sock and self._staleness.is_stale(self.connected_at, self._used_at):  # type: ignore[attr-defined]
            self.disconnect()  # type: ignore[attr-defined]
        if self._sock is None:  # type: ignore[attr-defined]
            self._guard.connect(self._open, redis.ConnectionError("another thread is trying to connect"))

    def _open(self) -> None:
        self._is_connecting = True
        try:
            super().connect()  # type: ignore[misc]
            # A server with too many clients accepts the connection, sends an error, and closes it.
            self.send_command("PING", check_health=False)  # type: ignore[attr-defined]
            with suppress(redis.exceptions.NoPermissionError):  # a reply, so the server is up
                self.read_response()
        except redis.RedisError:
            self.disconnect()  # type: ignore[attr-defined]
            raise
        finally:
            self._is_connecting = False
        self.connected_at = self._used_at = time.monotonic()

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self._is_connecting:
            super().send_packed_command(command, check_health)  # type: ignore[misc]
            return
        # If the server closed the connection, its unread reply says why.
        with suppress(OSError):
            self._sock.sendall(command if isinstance(command, bytes) else b"".join(command))  # type: ignore[attr-defined]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            response = super().read_response(*arguments, **options)  # type: ignore[misc]
        except redis.RedisError as error:
            self._check_error(error)
            raise
        for item in response if isinstance(response, list) else ():
            if isinstance(item, redis.RedisError):  # from a command in a transaction
                self._check_error(item)
        self._used_at = time.monotonic()
        return response

    def _check_error(self, error: redis.RedisError) -> None:
        """Distrust the pool's connections after any error that is not about stored data.

        Any such error may mean that another server has taken over: READONLY, LOADING, MASTERDOWN,
        CLUSTERDOWN, NOREPLICAS, NOAUTH, errors of a proxy, and replies that do not arrive.
        """
        is_about_data = isinstance(error, redis.exceptions.NoScriptError) or any(
            text in str(error) for text in _DATA_ERRORS
        )
        if not self._is_connecting and not is_about_data:
            self._staleness.report_failure()


class _BoundedSocket(Connection):
    """Connects within `socket_connect_timeout`, including name lookup and all addresses."""

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + (self.socket_connect_timeout or CONNECT_SECONDS)
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        connection = sockets.connect(self.host, self.port, deadline, options)
        connection.settimeout(self.socket_timeout)
        return connection


class _Tcp(_Monitored, _BoundedSocket):
    pass


class _Tls(_Monitored, SSLConnection, _BoundedSocket):
    pass


class _Unix(_Monitored, UnixDomainSocketConnection):
    pass


_MONITORED: dict[type[Any], type[Any]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def redis_client(url: str) -> redis.Redis:
    """Create a client that takes at most half a second to connect, and for each reply.

    With redis-py's defaults, a stalled server blocks a thread for a minute: ten attempts of five seconds.
    Commands are not retried, because one whose reply was lost may have taken effect.
    """
    return redis.Redis.from_pool(
        Pool.from_url(
            url,
            socket_timeout=REPLY_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            driver_info=None,  # saves a round trip for each connection, and the permission for CLIENT
        )
    )


def _is_reply(error: Exception) -> bool:
    """Return whether Redis itself rejected a connection because it has too many."""
    return _TOO_MANY in str(error)
