"""The first process of a host: starts its services, and restarts those that fail, like systemd.

Its argument lists the services, as JSON. Each line of its standard input is a command, such as `stop web`.
When it is killed, the kernel kills all processes of the host.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.1
RESTART_SECONDS = 2.0  # RestartSec


class Service:
    """A program that is started again when it ends, until it is stopped."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str, log: str) -> None:
        self._command, self._env, self._cwd, self._log = argv, env, cwd, log
        self.pid: int | None = None
        self._is_wanted = True
        self._restarts_now = False
        self._not_before = 0.0

    def start_if_due(self) -> None:
        if self._is_wanted and self.pid is None and time.monotonic() >= self._not_before:
            try:
                with Path(self._log).open("ab") as output:
                    self.pid = subprocess.Popen(
                        self._command,
                        env=self._env,
                        cwd=Path(self._cwd).resolve(),  # the release that is current now
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        process_group=0,
                    ).pid
            except OSError:  # the disk is full
                self._not_before = time.monotonic() + RESTART_SECONDS

    def ended(self) -> None:
        self.pid = None
        self._not_before = time.monotonic() + (0.0 if self._restarts_now else RESTART_SECONDS)
        self._restarts_now = False

    def obey(self, verb: str) -> None:
        """Do as `systemctl start`, `stop`, or `restart` does."""
        self._is_wanted = verb != "stop"
        self._not_before = 0.0
        if verb != "start" and self.pid is not None:
            self._restarts_now = verb == "restart"
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def main() -> None:
    specification: dict[str, dict[str, Any]] = json.loads(sys.argv[1])
    services = {name: Service(**options) for name, options in specification.items()}
    orders: deque[str] = deque()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
    while True:
        while orders:
            verb, name = orders.popleft().split()
            services[name].obey(verb)
        for pid in _ended_children():
            for service in services.values():
                if service.pid == pid:
                    service.ended()
        for service in services.values():
            service.start_if_due()
        time.sleep(POLL_SECONDS)


def _read_orders(orders: "deque[str]") -> None:
    for line in sys.stdin:
        orders.append(line)
    os._exit(1)


def _ended_children() -> list[int]:
    """Return the children that have ended, including those whose parents had ended before."""
    ended = []
    with suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended.append(pid)
    return ended


if __name__ == "__main__":
    main()
