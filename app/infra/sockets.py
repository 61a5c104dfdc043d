"""Name lookup and connecting, within one deadline."""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Address = tuple[socket.AddressFamily, tuple[Any, ...]]

# Resolvers take seconds to retry after a lost packet. Callers do not wait that long.
RETRY_SECONDS = 1.0
MAX_THREADS = 4  # for each name


@dataclass
class _Lookup:
    result: "Future[list[Address]]" = field(default_factory=Future)
    started_at: float = -RETRY_SECONDS
    threads: int = 0


# Lookups in progress. Host names come from the settings, so there are only a few.
_lookups: dict[tuple[str, int], _Lookup] = {}
_lock = threading.Lock()


def connect(
    host: str, port: int, deadline: float, options: Iterable[tuple[int, int, int | bytes]] = ()
) -> socket.socket:
    """Connect to the first address of a host that accepts.

    The remaining time is divided among the remaining addresses, so an address that does not respond does not
    use up all of it.

    Args:
        host: A name or an IP address.
        port: The TCP port.
        deadline: A `time.monotonic` value.
        options: Arguments of `setsockopt`.

    Raises:
        TimeoutError: The deadline passed.
        socket.gaierror: The name does not exist.
        OSError: No address accepts connections. This is the error of the last one.
    """
    failure: OSError = TimeoutError("no time left to connect")
    addresses = lookup(host, port, deadline)
    for position, (family, address) in enumerate(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            for option in options:
                connection.setsockopt(*option)
            connection.settimeout(left / (len(addresses) - position))
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def lookup(host: str, port: int, deadline: float) -> list[Address]:
    """Look up a host's addresses, in the order in which to try them.

    The system's resolver cannot be interrupted and may take half a minute, so it runs in separate threads.
    Callers share the first result for a name. If that takes long, another thread tries as well.

    Raises:
        TimeoutError: The deadline passed. The lookup continues, for later callers.
        socket.gaierror: The name does not exist.
    """
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    while True:
        running = _start(host, port)
        left = deadline - time.monotonic()
        try:
            return running.result(timeout=max(0.0, min(left, RETRY_SECONDS)))
        except TimeoutError:
            if left <= RETRY_SECONDS:
                raise


def _start(host: str, port: int) -> "Future[list[Address]]":
    """Start a lookup, unless one was started less than `RETRY_SECONDS` ago. Returns its future."""
    with _lock:
        lookup = _lookups.setdefault((host, port), _Lookup())
        now = time.monotonic()
        if now - lookup.started_at >= RETRY_SECONDS and lookup.threads < MAX_THREADS:
            lookup.started_at = now
            lookup.threads += 1
            threading.Thread(target=_resolve, args=(host, port, lookup), name="lookup", daemon=True).start()
        return lookup.result


def _literal(host: str, port: int) -> Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return socket.AF_INET, (str(address), port)
    return None if address.scope_id else (socket.AF_INET6, (str(address), port, 0, 0))


def _resolve(host: str, port: int, lookup: _Lookup) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        outcome: list[Address] | Exception = [(entry[0], entry[4]) for entry in found]
    except Exception as error:  # noqa: BLE001 - raised in the callers
        outcome = error
    with _lock:
        lookup.threads -= 1
        is_settled = lookup.result.done() or (isinstance(outcome, Exception) and lookup.threads > 0)
        if is_settled:
            return
        del _lookups[host, port]
        if isinstance(outcome, Exception):
            lookup.result.set_exception(outcome)
        else:
            lookup.result.set_result(outcome)
