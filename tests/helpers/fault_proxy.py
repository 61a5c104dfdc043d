"""A TCP proxy that breaks connections on purpose.

    with FaultProxy(("127.0.0.1", 6379)) as proxy:
        proxy.hold("up", when=b"COMMIT")
        ...
        proxy.wait_until_held()
        proxy.release()

It searches the bytes for patterns, whatever the protocol. `restore` undoes every fault.
"""

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Direction = Literal["up", "down"]
Upstream = tuple[str, int] | str | Path

CHUNK = 65_536
# How often to check whether the client of a held connection has closed it. Nothing is read from it meanwhile.
POLL_SECONDS = 0.02
# How long to wait for what should happen soon.
LONG = 120.0
_PEER_CLOSED = getattr(select, "POLLRDHUP", select.POLLHUP)  # Linux also reports half-closed connections


class _Connection:
    """A client's connection, and the one to the upstream server that belongs to it."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.upstream: socket.socket | None = None
        self.closed = threading.Event()
        self.is_broken = False  # bytes were lost
        self.drop_next_reply = False
        self.last_direction: Direction = "down"
        self.tails: dict[Direction, bytes] = {"up": b"", "down": b""}
        self._lock = threading.Lock()

    def attach(self, upstream: socket.socket) -> None:
        """Set the upstream socket, or close it if the connection has been closed."""
        with self._lock:
            self.upstream = upstream
            closed = self.closed.is_set()
        if closed:
            _close(upstream)

    def close(self) -> None:
        with self._lock:
            self.closed.set()
            sockets = [self.client, self.upstream]
        for one in sockets:
            if one is not None:
                _close(one)

    def is_closed(self) -> bool:
        """Whether the client has closed its end. Does not read from the socket."""
        if self.closed.is_set():
            return True
        poll = select.poll()
        try:
            poll.register(self.client, _PEER_CLOSED)
        except (OSError, ValueError):  # closed by another thread
            return True
        return bool(poll.poll(0))


@dataclass
class _Trigger:
    """A pattern to search for. If `since` is set, a client must have sent it on the same connection first."""

    direction: Direction
    when: bytes
    since: bytes | None = None
    armed: set[int] = field(default_factory=set)

    def matches(self, connection: _Connection, direction: Direction, chunk: bytes) -> bool:
        tail = connection.tails[direction]
        if self.since is not None and id(connection) not in self.armed:
            if direction == "up" and _ends_in(self.since, tail, chunk):
                self.armed.add(id(connection))
            return False
        return direction == self.direction and _ends_in(self.when, tail, chunk)


class FaultProxy:
    """Listens on a free port and forwards to the upstream server. Threads may share it."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        # Keeps the port from other programs while nothing listens on it.
        self._reserved = _bind(0)
        self.port = int(self._reserved.getsockname()[1])
        self._changed = threading.Condition()
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._blackhole = False
        self._latency = 0.0
        self._hold: _Trigger | None = None
        self._drop: _Trigger | None = None
        self._held = 0
        self._dropped = 0
        self._opened = 0
        self._round_trips = 0

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        self.refuse()
        _close(self._reserved)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        with self._changed:
            return len(self._connections)

    @property
    def opened(self) -> int:
        """The number of connections that clients have opened so far."""
        with self._changed:
            return self._opened

    @property
    def held(self) -> int:
        """The number of held connections."""
        with self._changed:
            return self._held

    @property
    def dropped(self) -> int:
        """The number of dropped replies so far."""
        with self._changed:
            return self._dropped

    @property
    def round_trips(self) -> int:
        """How often a client has sent something to which no reply had begun, on all connections together."""
        with self._changed:
            return self._round_trips

    def refuse(self) -> None:
        """Refuse new connections, and cut the open ones."""
        with self._changed:
            listener, self._listener = self._listener, None
        if listener is not None:
            _close(listener)
        self.cut()

    def blackhole(self) -> None:
        """Accept connections, but discard all bytes, in both directions."""
        with self._changed:
            self._blackhole = True

    def lose_connections(self) -> None:
        """Discard all bytes on the open connections, as a NAT that has lost its state. New ones work."""
        with self._changed:
            for connection in self._connections:
                connection.is_broken = True

    def hold(self, direction: Direction, when: bytes, *, since: bytes | None = None) -> None:
        """Hold each connection from the chunk in which `when` ends, until `release`.

        With `since`, hold only connections that have sent that pattern after this call.
        """
        with self._changed:
            self._hold = _Trigger(direction, when, since)

    def wait_until_held(self, count: int = 1, timeout: float = LONG) -> None:
        """Wait until at least `count` connections are held."""
        self._wait_for(lambda: self._held >= count, timeout, f"{count} held connections")

    def release(self) -> None:
        """Continue held connections, and hold no more."""
        with self._changed:
            self._hold = None
            self._changed.notify_all()

    def drop_reply(self, after: bytes, *, since: bytes | None = None) -> None:
        """Forward the next request that contains `after`, drop its reply, and cut the connection. Once."""
        with self._changed:
            self._drop = _Trigger("up", after, since)

    def wait_until_dropped(self, count: int = 1) -> None:
        """Wait until at least `count` replies have been dropped since the start."""
        self._wait_for(lambda: self._dropped >= count, LONG, f"{count} dropped replies")

    def cut(self) -> None:
        """Close every open connection, on both sides."""
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            connection.close()
        with self._changed:
            self._changed.notify_all()

    def latency(self, seconds: float) -> None:
        """Delay every chunk by this long, in both directions."""
        with self._changed:
            self._latency = seconds
            self._changed.notify_all()

    def restore(self) -> None:
        """Undo every fault. Connections that have lost bytes are cut."""
        with self._changed:
            self._blackhole, self._latency, self._hold, self._drop = False, 0.0, None, None
            broken = [connection for connection in self._connections if connection.is_broken]
            self._changed.notify_all()
        for connection in broken:
            connection.close()
        self._listen()

    def _wait_for(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"waited {timeout} s for {what}"

    def _listen(self) -> None:
        with self._changed:
            if self._listener is not None:
                return
            listener = self._listener = _bind(self.port)
            listener.listen(128)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed by `refuse`
                return
            connection = _Connection(client)
            with self._changed:
                if self._listener is not listener:
                    _close(client)
                    return
                self._connections.add(connection)
                self._opened += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        """Forward in both directions until either side closes."""
        try:
            client = connection.client
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._is_blackhole(connection):
                self._discard_input(client)
                return
            upstream = _connect(self.upstream)
            connection.attach(upstream)
            back = threading.Thread(
                target=self._pump, args=(connection, upstream, client, "down"), daemon=True
            )
            back.start()
            self._pump(connection, client, upstream, "up")
            back.join()
        except OSError:
            pass  # the upstream server is down
        finally:
            connection.close()
            with self._changed:
                self._connections.discard(connection)
                self._changed.notify_all()

    def _pump(
        self, connection: _Connection, source: socket.socket, sink: socket.socket, direction: Direction
    ) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                if self._is_blackhole(connection):
                    continue
                if not self._may_forward(connection, direction, chunk):
                    break
                sink.sendall(chunk)
        connection.close()

    def _may_forward(self, connection: _Connection, direction: Direction, chunk: bytes) -> bool:
        """Delay or hold a chunk. Returns whether to forward it."""
        with self._changed:
            self._round_trips += direction == "up" and connection.last_direction == "down"
            connection.last_direction = direction
            if direction == "down" and connection.drop_next_reply:
                self._dropped += 1
                self._changed.notify_all()
                return False
            if self._drop is not None and self._drop.matches(connection, direction, chunk):
                self._drop, connection.drop_next_reply = None, True
            hold = self._hold
            is_held = hold is not None and hold.matches(connection, direction, chunk)
            connection.tails[direction] = (connection.tails[direction] + chunk)[-256:]
            until = time.monotonic() + self._latency
            while self._latency and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return not is_held or self._wait_for_release(connection, hold)

    def _wait_for_release(self, connection: _Connection, hold: _Trigger | None) -> bool:
        """Wait until `release`. Returns False if the client has closed the connection."""
        self._held += 1
        self._changed.notify_all()
        try:
            while self._hold is hold:
                if connection.is_closed():
                    return False
                self._changed.wait(POLL_SECONDS)
            return not connection.is_closed()
        finally:
            self._held -= 1

    def _is_blackhole(self, connection: _Connection) -> bool:
        with self._changed:
            connection.is_broken = connection.is_broken or self._blackhole
            return connection.is_broken

    def _discard_input(self, client: socket.socket) -> None:
        with suppress(OSError):
            while client.recv(CHUNK):
                pass


def _ends_in(pattern: bytes, tail: bytes, chunk: bytes) -> bool:
    """Whether the pattern ends in this chunk. It may begin in an earlier one."""
    overlap = tail[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
    return pattern in overlap + chunk


def _bind(port: int) -> socket.socket:
    """Return a socket bound to a loopback port, which sockets of this process can share."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _connect(upstream: Upstream) -> socket.socket:
    if isinstance(upstream, tuple):
        connected = socket.create_connection(upstream, timeout=LONG)
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.connect(str(upstream))
    except OSError:
        connected.close()
        raise
    return connected


def _close(one: socket.socket) -> None:
    # Only `shutdown` wakes a thread that waits in `accept` or `recv`.
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
