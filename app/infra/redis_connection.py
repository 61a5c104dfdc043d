"""Connections to one Redis server: opened within one deadline, and replaced when it is the wrong server."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from app.infra import sockets
from app.infra.redis_refusals import is_refusal
from app.infra.staleness import Staleness
from app.resilience.connect_guard import ConnectGuard

CONNECT_SECONDS = 0.5

# A connection that was used this recently counts as open.
WARM_SECONDS = 0.01

TOO_MANY = "max number of clients reached"
# Errors about stored data, not about the server.
_DATA_ERRORS = ("no such key", "WRONGTYPE")


class _Monitored:
    """A connection that watches for errors, and reconnects when it is stale."""

    def __init__(self, *, staleness: Staleness, guard: ConnectGuard, **options: Any) -> None:
        self._staleness, self._guard = staleness, guard
        self.connected_at = self._used_at = 0.0
        self._is_connecting = False
        self.has_refused = False  # a command, because another server is in charge of the data
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
            try:
                self.read_response()
            except redis.ResponseError as error:
                if not _is_up(error):
                    raise
        except redis.RedisError:
            self.disconnect()  # type: ignore[attr-defined]
            raise
        finally:
            self._is_connecting = False
        self._staleness.report_server((getattr(self, "host", None), getattr(self, "port", None)))
        self.has_refused = False
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
        if self._is_connecting or is_about_data:
            return
        self.has_refused = self.has_refused or is_refusal(error)
        self._staleness.report_failure()

    def close_if_stale(self) -> None:
        """Close a connection that has refused a command, unless it was opened since all were replaced.

        One that stays open counts as new: its server may lack what the one before it had.
        """
        self.has_refused, now = False, time.monotonic()
        if self._staleness.is_stale(self.connected_at, self._used_at):
            self.disconnect()  # type: ignore[attr-defined]
        else:
            self.connected_at = now


def _is_up(error: redis.ResponseError) -> bool:
    """Return whether a server with this reply to PING can be used: without the right to PING, or for reads.

    MISCONF means that the disk is full. A node of a cluster can then still say which node has replaced it.
    """
    return isinstance(error, redis.exceptions.NoPermissionError) or str(error).startswith("MISCONF ")


class BoundedConnection(Connection):
    """Connects within `socket_connect_timeout`, including name lookup and all addresses."""

    def __init__(self, *, find_server: Callable[[], tuple[str, int]] | None = None, **options: Any) -> None:
        self._find_server = find_server
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        if self._find_server:
            self.host, self.port = self._find_server()
        deadline = time.monotonic() + (self.socket_connect_timeout or CONNECT_SECONDS)
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        connection = sockets.connect(self.host, self.port, deadline, options)
        connection.settimeout(self.socket_timeout)
        return connection


class BoundedTlsConnection(SSLConnection, BoundedConnection):
    """The same, with TLS."""


class _Tcp(_Monitored, BoundedConnection):
    pass


class _Tls(_Monitored, BoundedTlsConnection):
    pass


class _Unix(_Monitored, UnixDomainSocketConnection):
    pass


MONITORED: dict[type[Any], type[Any]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}
