"""Finds out whether a port is free, and which program has it."""

import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError:
        return False
    return True


def accepts(host: str, port: int) -> bool:
    """Return whether something listens there, without ever being in its way."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def by_holder(port: int) -> str:
    """Return ` by NAME, pid 42` for the program that listens on a TCP port; empty if unknown."""
    if Path("/proc/net/tcp").exists():
        return _holder_from_proc(port)
    lsof = [shutil.which("lsof") or "true", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
    output = subprocess.run(lsof, capture_output=True, text=True, check=False).stdout
    fields = {line[0]: line[1:] for line in output.splitlines() if line}
    return f" by {fields['c']}, pid {fields['p']}" if {"c", "p"} <= fields.keys() else ""


def _holder_from_proc(port: int) -> str:
    """Find the process through its listening socket: proc(5), /proc/net/tcp."""
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for fields in map(str.split, table.read_text().splitlines()[1:] if table.exists() else ()):
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if any(str(descriptor.readlink()) in inodes for descriptor in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()}, pid {process.name}"
    return ""
