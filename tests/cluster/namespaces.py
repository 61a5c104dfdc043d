"""A private network: this process with a bridge, and three hosts with a cable to it.

`enter` starts the program again in namespaces that end with it: network, mounts, and processes. So nothing
remains, whatever happens.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.helpers.servers import ROOT, Unavailable, find_program

PREFIX = "10.77.0"
BALANCER = f"{PREFIX}.10"
# Hosts reach the sandbox here. Settings accept plain http on a loopback address only.
SPOTIFY = "127.77.0.10"
HOME = Path("/run/cluster")  # on a file system of our own
_INSIDE = "BACKLINE_CLUSTER_INSIDE"

Cut = Literal["both", "in", "out"]


def enter(arguments: Sequence[str], **options: object) -> "subprocess.Popen[bytes]":
    """Start `python -m tests.cluster` in new namespaces. It ends when its standard input is closed.

    Raises:
        Unavailable: A program or a right is missing.
    """
    flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    unshare = [find_program("unshare", "util-linux"), *flags]
    for program, package in (("ip", "iproute2"), ("bridge", "iproute2"), ("rsync", "rsync")):
        find_program(program, package)
    done = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"namespaces are not allowed here: {done.stderr.strip()}")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin"
    environment = {**os.environ, "PATH": path, _INSIDE: "1"}
    command = [*unshare, sys.executable, "-m", "tests.cluster", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def is_inside() -> bool:
    """Return whether this process was started by `enter`."""
    return os.environ.get(_INSIDE) == "1"


def end_with_runner() -> None:
    """End this process, and with it all namespaces, when the runner ends, even if it is killed."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(*command: str) -> str:
    """Run a command, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def make_network() -> None:
    """Make the bridge. Hide the machine's /run and /dev/shm behind empty ones."""
    for place in ("/run", "/dev/shm"):  # noqa: S108 - they are mounted over
        run("mount", "-t", "tmpfs", "tmpfs", place)
    HOME.mkdir()
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "bridge", "type", "bridge")
    run("ip", "address", "add", f"{BALANCER}/24", "dev", "bridge")
    run("ip", "link", "set", "bridge", "up")
    Path("/proc/sys/net/ipv4/conf/bridge/route_localnet").write_text("1")


class Cable:
    """The link of one host to the bridge."""

    def __init__(self, number: int) -> None:
        self.address = f"{PREFIX}.{number}"
        self.namespace = f"host{number}"
        self._port = f"port{number}"
        ours, theirs = ["ip"], ["ip", "-n", self.namespace]
        run("ip", "netns", "add", self.namespace)
        run(*ours, "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run(*ours, "link", "set", self._port, "master", "bridge", "up")
        run(*theirs, "link", "set", "lo", "up")
        run(*theirs, "link", "set", "eth0", "up")
        run(*theirs, "address", "add", f"{self.address}/24", "dev", "eth0")
        # Of the loopback addresses, only 127.0.0.1 stays on the host; the sandbox's leads here.
        localnet = "for each in all eth0; do echo 1 >/proc/sys/net/ipv4/conf/$each/route_localnet; done"
        run("ip", "netns", "exec", self.namespace, "sh", "-c", localnet)
        run(*theirs, "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
        run(*theirs, "route", "add", SPOTIFY, "via", BALANCER, "src", self.address)
        self._hardware = run(*theirs, "-brief", "link", "show", "eth0").split()[2]

    def cut(self, what: Cut) -> None:
        """Lose all packets silently: in both directions, or only those to (`in`) or from (`out`) the host."""
        if what == "both":
            self._set("state", "0")
            return
        # The bridge forgets where the host is. Then it can refuse to look for it, or to believe it.
        self._set("learning", "off")
        subprocess.run(
            ["bridge", "fdb", "del", self._hardware, "dev", self._port, "master"],
            capture_output=True,
            check=False,  # it may have forgotten already
        )
        if what == "out":
            self._set("locked", "on")
            return
        for kind in ("flood", "mcast_flood", "bcast_flood"):
            self._set(kind, "off")

    def restore(self) -> None:
        """Undo any cut."""
        for kind in ("flood", "mcast_flood", "bcast_flood", "learning"):
            self._set(kind, "on")
        self._set("locked", "off")
        self._set("state", "3")

    def _set(self, name: str, value: str) -> None:
        run("bridge", "link", "set", "dev", self._port, name, value)
