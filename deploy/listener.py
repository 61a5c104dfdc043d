"""Lets systemd keep the listening socket while gunicorn restarts, so that connections wait for the new one.

See sd_notify(3), FDSTORE. The arbiter imports this module, so it must not import the app (deploy/worker.py).
"""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress

# systemd passes kept descriptors from this number on, and says for which process they are (sd_listen_fds(3)).
_FIRST = 3
_NAME = "listener"


def keep(sockets: Iterable[socket.socket]) -> None:
    """Ask systemd to keep these sockets open until the service is stopped and not started again."""
    for each in sockets:
        _notify(f"FDSTORE=1\nFDNAME={_NAME}", each)


def drop_if_moved(port: int) -> None:
    """Drop the socket of the previous gunicorn if `PORT` has changed since."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return
    with socket.socket(fileno=os.dup(_FIRST)) as kept:
        if kept.getsockname()[1] == port:
            return
    os.close(_FIRST)
    del os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"]
    _notify(f"FDSTOREREMOVE=1\nFDNAME={_NAME}")


def _notify(message: str, *sockets: socket.socket) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:  # systemd did not start this process
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service_manager, suppress(OSError):
        service_manager.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        socket.send_fds(service_manager, [message.encode()], [each.fileno() for each in sockets])
