"""Name lookup and connecting within one deadline, whichever step is slow."""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

Address = tuple[socket.AddressFamily, tuple[Any, ...]]

# Lookups in progress. Host names come from settings, so there are only a few.
_lookups: dict[tuple[str, int], "Future[list[Address]]"] = {}
_lock = threading.Lock()


def connect(
    host: str, port: int, deadline: float, options: Iterable[tuple[int, int, int | bytes]] = ()
) -> socket.socket:
    """Connect to the first address that accepts. `deadline` is a `time.monotonic` value.

    The time left is divided among the addresses not tried yet, so one that never answers does not
    use up the time of the others.

    Raises:
        TimeoutError: the deadline passed.
        socket.gaierror: the name does not exist.
        OSError: no address accepts; the last one's error.
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

    The system's resolver cannot be interrupted and may take half a minute. It runs in a thread of its
    own, one per name; callers that ask for the same name meanwhile wait for the same result.

    Raises:
        TimeoutError: the deadline passed. The lookup continues, for callers to come.
        socket.gaierror: the name does not exist.
    """
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    with _lock:
        running = _lookups.get((host, port))
        if running is None:
            running = _lookups[host, port] = Future()
            threading.Thread(target=_resolve, args=(host, port, running), name="lookup", daemon=True).start()
    return running.result(timeout=max(0.0, deadline - time.monotonic()))


def _literal(host: str, port: int) -> Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return socket.AF_INET, (str(address), port)
    return None if address.scope_id else (socket.AF_INET6, (str(address), port, 0, 0))


def _resolve(host: str, port: int, running: "Future[list[Address]]") -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses: list[Address] = [(entry[0], entry[4]) for entry in found]
    except Exception as error:  # noqa: BLE001 - callers raise it
        outcome: list[Address] | Exception = error
    else:
        outcome = addresses
    with _lock:
        del _lookups[host, port]
    if isinstance(outcome, Exception):
        running.set_exception(outcome)
    else:
        running.set_result(outcome)
