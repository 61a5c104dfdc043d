"""Connections to Redis: made within one deadline, and replaced when they lead to the wrong server."""

import socket
import threading
import time
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from app.infra import sockets
from app.infra.staleness import Staleness
from app.resilience.connect_guard import ConnectGuard

# How long a caller waits for another's attempt to connect while Redis is down.
DOWN_SECONDS = 0.05
CONNECT_SECONDS = 0.5
REPLY_SECONDS = 0.5

_TOO_MANY = "max number of clients reached"
# Errors about what is stored rather than about the server.
_ABOUT_DATA = ("no such key", "WRONGTYPE", "NOSCRIPT")


class Pool(redis.ConnectionPool):
    """Keeps connections, and replaces those that `Staleness` rejects."""

    def __init__(self, connection_class: type[Any] = Connection, **options: Any) -> None:
        self._returned = threading.Condition()
        super().__init__(
            connection_class=_OURS.get(connection_class, connection_class),
            staleness=Staleness(),
            guard=ConnectGuard(DOWN_SECONDS, CONNECT_SECONDS, _is_answer),
            **options,
        )

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Take a connection. If Redis accepts no more of them, wait for one of ours to be returned."""
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return super().get_connection(*arguments, **options)
            except redis.ConnectionError as error:
                if _TOO_MANY not in str(error) or time.monotonic() > deadline:
                    raise
            with self._returned:
                self._returned.wait(DOWN_SECONDS)

    def release(self, connection: Any) -> None:
        """Put a connection back; one that is not connected below those that are, which are used first."""
        super().release(connection)
        with self._lock, suppress(ValueError):  # it may have been taken already
            if connection._sock is None:  # noqa: SLF001
                self._available_connections.remove(connection)
                self._available_connections.insert(0, connection)
        with self._returned:
            self._returned.notify()


class _Watched:
    """A connection that looks at the errors it receives, and reconnects when it has become stale."""

    def __init__(self, *, staleness: Staleness, guard: ConnectGuard, **options: Any) -> None:
        self._staleness, self._guard = staleness, guard
        self._connected_at = self._used_at = 0.0
        self._is_connecting = False
        super().__init__(**options)

    def connect(self) -> None:
        if self._sock and self._staleness.is_stale(self._connected_at, self._used_at):  # type: ignore[attr-defined]
            self.disconnect()  # type: ignore[attr-defined]
        if self._sock is None:  # type: ignore[attr-defined]
            self._guard.connect(self._open, redis.ConnectionError("another thread is trying to connect"))

    def _open(self) -> None:
        self._is_connecting = True
        try:
            super().connect()  # type: ignore[misc]
            # A server that has too many clients says so, and closes the connection at once.
            self.send_command("PING", check_health=False)  # type: ignore[attr-defined]
            with suppress(redis.exceptions.NoPermissionError):  # an answer all the same
                self.read_response()
        except redis.RedisError:
            self.disconnect()  # type: ignore[attr-defined]
            raise
        finally:
            self._is_connecting = False
        self._connected_at = self._used_at = time.monotonic()

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self._is_connecting:
            super().send_packed_command(command, check_health)  # type: ignore[misc]
            return
        # If the server has closed the connection, its reply, which is still to be read, says why.
        with suppress(OSError):
            self._sock.sendall(command if isinstance(command, bytes) else b"".join(command))  # type: ignore[attr-defined]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            response = super().read_response(*arguments, **options)  # type: ignore[misc]
        except redis.RedisError as error:
            self._look_at(error)
            raise
        for item in response if isinstance(response, list) else ():
            if isinstance(item, redis.RedisError):  # of a command in a transaction
                self._look_at(item)
        self._used_at = time.monotonic()
        return response

    def _look_at(self, error: redis.RedisError) -> None:
        """Distrust the pool's connections after any error that is not about what is stored.

        READONLY, LOADING, MASTERDOWN, CLUSTERDOWN, NOREPLICAS, NOAUTH and the like, whatever a proxy
        makes up, and replies that do not arrive: each may mean that the right server is another one now.
        """
        if not self._is_connecting and not any(text in str(error) for text in _ABOUT_DATA):
            self._staleness.report_failure()


class _BoundedSocket(Connection):
    """Connects within `socket_connect_timeout`, name lookup and all addresses included."""

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + (self.socket_connect_timeout or CONNECT_SECONDS)
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        connection = sockets.connect(self.host, self.port, deadline, options)
        connection.settimeout(self.socket_timeout)
        return connection


class _Tcp(_Watched, _BoundedSocket):
    pass


class _Tls(_Watched, SSLConnection, _BoundedSocket):
    pass


class _Unix(_Watched, UnixDomainSocketConnection):
    pass


_OURS: dict[type[Any], type[Any]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def redis_client(url: str) -> redis.Redis:
    """Make a client that answers or fails within half a second for each step.

    redis-py's defaults hold a thread for a minute against a stalled server: five seconds a try,
    ten tries. Nothing is retried here, because a lost reply does not mean a lost effect.
    """
    return redis.Redis.from_pool(
        Pool.from_url(
            url,
            socket_timeout=REPLY_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            driver_info=None,  # one round trip less for each connection, and no right to CLIENT needed
        )
    )


def _is_answer(error: Exception) -> bool:
    """Whether Redis itself refused a connection because it has too many."""
    return _TOO_MANY in str(error)
