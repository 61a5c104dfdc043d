"""Finds out whether a port is free, and if not, who has it."""

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now, asked the way servers do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def accepts(host: str, port: int) -> bool:
    """Whether something listens there. Unlike a trial bind, asking is never in a starting server's way."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def holder(port: int) -> str:
    """Who listens on a TCP port of this machine, as `name, pid 42`; empty when that cannot be known."""
    if Path("/proc/net/tcp").exists():
        return _holder_by_proc(port)
    lsof = shutil.which("lsof")
    if lsof is None:
        return ""
    found = subprocess.run(
        [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], capture_output=True, text=True, check=False
    )
    fields = {line[0]: line[1:] for line in found.stdout.splitlines() if line}
    return f"{fields['c']}, pid {fields['p']}" if {"c", "p"} <= fields.keys() else ""


def _holder_by_proc(port: int) -> str:
    """Look the socket up in /proc. Other people's processes are not readable, so it may not be found."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for descriptor in (entry / "fd").iterdir():
                if str(descriptor.readlink()) in sockets:
                    return f"{(entry / 'comm').read_text().strip()}, pid {entry.name}"
    return ""


def _listening_inodes(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port: proc(5), /proc/net/tcp."""
    listening = "0A"
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                (
                    _,
                    local,
                    _,
                    state,
                    *_,
                ) = fields = line.split()
                if state == listening and int(local.rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes
