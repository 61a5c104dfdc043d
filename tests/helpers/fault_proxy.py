"""A TCP proxy that breaks connections on purpose: for MySQL, Redis and HTTP alike.

    with FaultProxy(("127.0.0.1", 6379)) as proxy:
        proxy.hold("up", when=b"COMMIT")
        ...
        proxy.wait_held()
        proxy.release()

It knows no protocol. A pattern is looked for in the bytes as they pass; that MySQL and Redis frame
them in binary does not matter. Everything can be undone with `restore`.
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
# How often a held connection is looked at for its client having gone. Nothing tells us otherwise:
# what we would read from it is what we hold back.
LOOK_SECONDS = 0.02
_PEER_CLOSED = getattr(select, "POLLRDHUP", select.POLLHUP)  # Linux tells of a half-closed connection too


class _Connection:
    """One client's connection and the one to the upstream server that belongs to it."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.upstream: socket.socket | None = None
        self.closed = threading.Event()
        self.swallows = False  # it lost bytes, so it can never be used again
        self.drops_reply = False
        self.last_direction: Direction = "down"
        self.tails: dict[Direction, bytes] = {"up": b"", "down": b""}
        self._lock = threading.Lock()

    def attach(self, upstream: socket.socket) -> None:
        """Take the upstream socket over. If the connection was cut meanwhile, it is closed with it."""
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

    def is_gone(self) -> bool:
        """Whether the client has closed its end, though nobody reads from it now."""
        if self.closed.is_set():
            return True
        poll = select.poll()
        try:
            # Bytes may wait to be read in front of the end, so a look at those would not do.
            poll.register(self.client, _PEER_CLOSED)
        except (OSError, ValueError):  # closed this very moment
            return True
        return bool(poll.poll(0))


@dataclass
class _Trap:
    """What to look for. `since` must have passed upwards on the same connection before `when` counts."""

    direction: Direction
    when: bytes
    since: bytes | None = None
    begun: set[int] = field(default_factory=set)

    def springs(self, connection: _Connection, direction: Direction, chunk: bytes) -> bool:
        tail = connection.tails[direction]
        if self.since is not None and id(connection) not in self.begun:
            if direction == "up" and _within(self.since, tail, chunk):
                self.begun.add(id(connection))
            return False
        return direction == self.direction and _within(self.when, tail, chunk)


class FaultProxy:
    """Listens on a port of its own and passes on what comes, until told otherwise. Threads may share it."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        # This one keeps the port while nobody listens on it, so that no other program gets it.
        self._reserved = _bound(0)
        self.port = int(self._reserved.getsockname()[1])
        self._changed = threading.Condition()
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._blackhole = False
        self._latency = 0.0
        self._hold: _Trap | None = None
        self._drop: _Trap | None = None
        self._held = 0
        self._dropped = 0
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
        """How many connections are open now."""
        with self._changed:
            return len(self._connections)

    @property
    def held(self) -> int:
        """How many connections are being held now."""
        with self._changed:
            return self._held

    @property
    def dropped(self) -> int:
        """How many replies have been swallowed so far."""
        with self._changed:
            return self._dropped

    @property
    def round_trips(self) -> int:
        """How often a client has sent something to which no reply had begun, on all connections together."""
        with self._changed:
            return self._round_trips

    def refuse(self) -> None:
        """Refuse to be connected to, and cut what is open."""
        with self._changed:
            listener, self._listener = self._listener, None
        if listener is not None:
            _close(listener)
        self.cut()

    def blackhole(self) -> None:
        """Accept everything and answer nothing: bytes are read and forgotten, in both directions."""
        with self._changed:
            self._blackhole = True

    def forget(self) -> None:
        """Forget the connections open now, as a NAT does: neither side is told, new ones work."""
        with self._changed:
            for connection in self._connections:
                connection.swallows = True

    def hold(self, direction: Direction, when: bytes, *, since: bytes | None = None) -> None:
        """Stop forwarding on each connection that shows `when`, from that very chunk until `release`.

        With `since`, only on a connection that has sent that before, counted from now.
        """
        with self._changed:
            self._hold = _Trap(direction, when, since)

    def wait_held(self, count: int = 1, timeout: float = 10) -> None:
        """Wait until at least `count` connections are held."""
        self._wait_for(lambda: self._held >= count, timeout, f"{count} held connections")

    def release(self) -> None:
        """Let everything go on that is held, and hold nothing more."""
        with self._changed:
            self._hold = None
            self._changed.notify_all()

    def drop_reply(self, after: bytes, *, since: bytes | None = None) -> None:
        """Forward the next request that shows `after`, swallow its answer, and cut the connection. Once."""
        with self._changed:
            self._drop = _Trap("up", after, since)

    def wait_dropped(self, count: int = 1, timeout: float = 10) -> None:
        """Wait until at least `count` replies have been swallowed since the start."""
        self._wait_for(lambda: self._dropped >= count, timeout, f"{count} dropped replies")

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
        """Undo every fault. Connections that have lost bytes are cut; the others go on."""
        with self._changed:
            self._blackhole, self._latency, self._hold, self._drop = False, 0.0, None, None
            spoilt = [connection for connection in self._connections if connection.swallows]
            self._changed.notify_all()
        for connection in spoilt:
            connection.close()
        self._listen()

    def _wait_for(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"waited {timeout} s for {what}"

    def _listen(self) -> None:
        with self._changed:
            if self._listener is not None:
                return
            listener = self._listener = _bound(self.port)
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
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        """Forward in both directions until either side closes."""
        try:
            client = connection.client
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._is_blackhole(connection):
                self._swallow(client)
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
            pass  # the upstream server is not there: the client sees its connection closed
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
                if not self._let_pass(connection, direction, chunk):
                    break
                sink.sendall(chunk)
        connection.close()

    def _let_pass(self, connection: _Connection, direction: Direction, chunk: bytes) -> bool:
        """Delay, hold or spoil a chunk. Returns whether it is to be sent on."""
        with self._changed:
            self._round_trips += direction == "up" and connection.last_direction == "down"
            connection.last_direction = direction
            if direction == "down" and connection.drops_reply:
                self._dropped += 1
                self._changed.notify_all()
                return False
            if self._drop is not None and self._drop.springs(connection, direction, chunk):
                self._drop, connection.drops_reply = None, True
            hold = self._hold
            caught = hold is not None and hold.springs(connection, direction, chunk)
            connection.tails[direction] = (connection.tails[direction] + chunk)[-256:]
            until = time.monotonic() + self._latency
            while self._latency and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return not caught or self._wait_for_release(connection, hold)

    def _wait_for_release(self, connection: _Connection, hold: _Trap | None) -> bool:
        """Wait with the lock held. Returns False if the client has gone meanwhile."""
        self._held += 1
        self._changed.notify_all()
        try:
            while self._hold is hold:
                if connection.is_gone():
                    return False
                self._changed.wait(LOOK_SECONDS)
            return not connection.is_gone()
        finally:
            self._held -= 1

    def _is_blackhole(self, connection: _Connection) -> bool:
        with self._changed:
            connection.swallows = connection.swallows or self._blackhole
            return connection.swallows

    def _swallow(self, client: socket.socket) -> None:
        with suppress(OSError):
            while client.recv(CHUNK):
                pass


def _within(pattern: bytes, tail: bytes, chunk: bytes) -> bool:
    """Whether the pattern ends in this chunk; it may have begun in what came before."""
    overlap = tail[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
    return pattern in overlap + chunk


def _bound(port: int) -> socket.socket:
    """A socket bound to a loopback port that may be shared with our own other sockets."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _connect(upstream: Upstream) -> socket.socket:
    if isinstance(upstream, tuple):
        connected = socket.create_connection(upstream, timeout=5)
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
    # A thread that waits in `accept` or `recv` is woken by the shutdown only.
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
