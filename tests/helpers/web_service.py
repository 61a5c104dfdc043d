"""gunicorn as systemd runs it, from deploy/systemd/backline-web.service."""

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.helpers.servers import ROOT, _directory, _process, eventually, free_port, process_environment

UNIT = ROOT / "deploy/systemd/backline-web.service"
# As sd_listen_fds(3) has it: descriptor 3, for the process with this number.
_PASS_LISTENER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); "
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[2], sys.argv[2:])"
)


class WebService:
    """Starts, reloads, and restarts gunicorn, and keeps the socket that it asks to keep."""

    def __init__(self, home: Path, settings: Mapping[str, str]) -> None:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(UNIT)
        self._unit = unit["Service"]
        self.port = free_port()
        address = home / "notify"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(address))
        self._notify.settimeout(1)
        own = {"PORT": str(self.port), "TMPDIR": str(home), "NOTIFY_SOCKET": str(address)}
        self._environment = process_environment({**own, **settings})
        self._home, self._kept, self._started = home, -1, 0
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self._notify.close()
        os.close(self._kept)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        return children(self.pid)

    def start(self) -> None:
        """Run ExecStart until it is ready."""
        command = self._unit["ExecStart"].replace("/opt/backline/.venv", sys.prefix).split()
        passed = [self._kept] if self._kept >= 0 and int(self._unit["FileDescriptorStoreMax"]) else []
        if passed:
            command = [sys.executable, "-IS", "-c", _PASS_LISTENER, str(self._kept), *command]
        self._started += 1
        log = self._home / f"log{self._started}"
        self._process = self._running.enter_context(
            _process(command, log, env=self._environment, pass_fds=passed)
        )
        eventually(self._is_ready, timeout=60)
        assert self._process.poll() is None, log.read_text()

    def _is_ready(self) -> bool:
        """Read a message. gunicorn sends READY=1 before the one with its socket."""
        if self._process.poll() is not None:
            return True
        message, descriptors, *_ = socket.recv_fds(self._notify, 4096, 1)
        if descriptors:
            self._keep(*descriptors)
        return message.startswith(b"FDSTORE=1")

    def _keep(self, descriptor: int) -> None:
        if self._kept >= 0:
            os.close(self._kept)
        self._kept = descriptor

    def check(self, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run the first ExecReload, with some other settings."""
        [command, _] = re.findall("^ExecReload=(.*)$", UNIT.read_text(), re.MULTILINE)
        arguments = command.replace("/opt/backline/.venv", sys.prefix).split()
        environment = self._environment | settings
        return subprocess.run(
            arguments, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
        )

    def reload(self) -> None:
        """Run ExecReload, and wait until all workers have been replaced."""
        assert self.check().returncode == 0
        assert self._unit["ExecReload"] == "/bin/kill -s HUP $MAINPID"
        old = self.workers
        self._process.send_signal(signal.SIGHUP)
        eventually(lambda: len(self.workers) == len(old) and not {*old} & {*self.workers}, timeout=60)

    def restart(self) -> None:
        """Stop gunicorn, and start it when it has ended."""
        self._process.terminate()
        assert self._process.wait(int(self._unit["TimeoutStopSec"])) == 0
        self.start()

    def replace(self) -> None:
        """Start another gunicorn beside the first (USR2), and then stop the first one."""
        self._process.send_signal(signal.SIGUSR2)
        [new] = eventually(lambda: [pid for pid in self.workers if len(children(pid)) == 2], timeout=60)
        self._process.terminate()
        assert self._process.wait(int(self._unit["TimeoutStopSec"])) == 0
        assert len(children(new)) == 2


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@contextmanager
def running_web_service(settings: Mapping[str, str]) -> Iterator[WebService]:
    """Run the unit with these settings in its .env."""
    with _directory() as home, WebService(home, settings) as service:
        yield service
