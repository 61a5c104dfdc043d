"""Which of several MySQL servers to connect to: the most preferred one that accepts writes."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from app.infra.mysql_pool import TOO_MANY_CONNECTIONS, error_code
from app.settings.database_url import Host

if TYPE_CHECKING:
    from app.infra.mysql_connection import MySqlConnection

# Opens a connection to a host within a number of seconds. None: to a Unix socket.
OpenHost = Callable[[Host | None, float], "MySqlConnection"]

# How often a host that failed is tried again, in the background.
RETRY_SECONDS = 1.0
# For how long it must then be usable before connections move back to it.
STEADY_SECONDS = 3.0
# How long a host whose disk was full is not used. If it still is, the next write is repeated elsewhere.
FULL_DISK_SECONDS = 60.0
# With less time than this left, no further host is tried.
LEAST_SECONDS = 0.5


class Hosts:
    """The servers of DATABASE_URL, and which of them have failed.

    All processes prefer the same server, so that normally one of them gets all writes: see
    docs/decisions/0070-several-mysql-servers.md. A host that failed is not used while another one is usable,
    until it has been usable for some seconds. A thread finds that out, so that no request waits for a host
    that does not reply.

    Args:
        hosts: The preferred one first. None for a Unix socket.
    """

    def __init__(self, hosts: Sequence[Host | None]) -> None:
        self._hosts = hosts
        self._open: OpenHost | None = None
        self._usable_since: dict[Host | None, float | None] = {}
        """The hosts that failed. If they are usable again, since when (`time.monotonic`)."""
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    def connect(self, open_host: OpenHost, seconds: float) -> "MySqlConnection":
        """Connect to the first host that accepts writes; if there is none, to one that can be read from.

        Raises:
            OperationalError: No host is usable, or the server has too many connections. This is the error of
                the host that was tried last.
        """
        self._open = open_host  # for the thread
        deadline = time.monotonic() + seconds
        readable: MySqlConnection | None = None
        failure: Exception | None = None
        hosts = self._in_order()
        for position, host in enumerate(hosts, 1):
            left = deadline - time.monotonic()
            if position > 1 and left < LEAST_SECONDS:
                break
            try:
                connection = open_host(host, left if position == len(hosts) else left / 2)
            except Exception as error:
                if error_code(error) in TOO_MANY_CONNECTIONS:  # then callers wait, and do not go elsewhere
                    _close(readable)
                    raise
                failure = error
                self._report_failure(host)
                continue
            if connection.accepts_writes:
                _close(readable)
                self._forget_failure(host)
                return connection
            self._report_failure(host)
            readable, surplus = readable or connection, connection if readable else None
            _close(surplus)
        if readable is not None:
            return readable
        assert failure is not None
        raise failure

    def is_outranked(self, connection: "MySqlConnection") -> bool:
        """Return whether a host that is preferred to that of this connection is usable."""
        with self._lock:
            preferred = self._hosts[: self._hosts.index(connection.server)]
            return any(host not in self._usable_since for host in preferred)

    def report_full_disk(self, host: Host | None) -> None:
        """Use other hosts for a while: this one is up, but rejects writes."""
        self._report_failure(host, usable_since=time.monotonic() + FULL_DISK_SECONDS)

    def _in_order(self) -> list[Host | None]:
        """Return the hosts in the order in which to try them: those that failed come last."""
        with self._lock:
            return sorted(self._hosts, key=self._usable_since.__contains__)

    def _forget_failure(self, host: Host | None) -> None:
        with self._lock:
            self._usable_since.pop(host, None)

    def _report_failure(self, host: Host | None, *, usable_since: float | None = None) -> None:
        if len(self._hosts) == 1:
            return
        with self._lock:
            self._usable_since[host] = usable_since
            if self._watcher is None or not self._watcher.is_alive():  # it does not survive a fork
                self._watcher = threading.Thread(
                    target=_watch, args=(weakref.ref(self),), name="mysql-hosts", daemon=True
                )
                self._watcher.start()

    def check_failed(self) -> bool:
        """Try the hosts that failed. Returns whether there are any left."""
        with self._lock:
            failed = list(self._usable_since)
        for host in failed:
            is_usable = self._is_usable(host)
            now = time.monotonic()
            with self._lock:
                since = self._usable_since.get(host)
                if host not in self._usable_since:
                    continue
                if is_usable and since is not None and now - since >= STEADY_SECONDS:
                    del self._usable_since[host]
                else:
                    self._usable_since[host] = (since or now) if is_usable else None
        with self._lock:
            if not self._usable_since:
                self._watcher = None
            return bool(self._usable_since)

    def _is_usable(self, host: Host | None) -> bool:
        assert self._open is not None
        try:
            connection = self._open(host, RETRY_SECONDS)
        except Exception:  # noqa: BLE001 - any error means that the host is not usable
            return False
        _close(connection)
        return connection.accepts_writes


def _close(connection: "MySqlConnection | None") -> None:
    if connection is not None:
        with suppress(Exception):  # it is not needed any more
            connection.close()


def _watch(hosts: "weakref.ref[Hosts]") -> None:
    while (found := hosts()) is not None and found.check_failed():
        del found
        time.sleep(RETRY_SECONDS)
