"""Runs script/server in a test, and ends it with all its processes."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from tests.helpers import secret_scanner
from tests.helpers.servers import LONG, eventually

Environ = dict[str, str]
Run = Callable[..., "Running"]


class Running:
    """A running script/server and its output so far."""

    def __init__(self, folder: Path, environ: Environ) -> None:
        self.output = ""
        self.process = subprocess.Popen(
            ["script/server"],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def until_ready(self) -> "Running":
        return self.until("Ctrl-C stops everything")

    def until(self, text: str) -> "Running":
        """Wait until it has printed this, and check that it is still running."""

        def printed_or_ended() -> bool:
            return text in self.output or self.process.poll() is not None

        try:
            eventually(printed_or_ended, 4 * LONG)  # the start takes seconds on an idle machine
        except AssertionError as error:
            raise AssertionError(self.output) from error
        assert self.process.poll() is None, self.output
        return self

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(LONG)
        self._reader.join(LONG)
        assert not self._reader.is_alive(), "a descendant holds its output open"
        assert self.process.stdout is not None
        self.process.stdout.close()
        secret_scanner.record(self.output, "the output of script/server")
        return status

    def remaining_processes(self) -> list[str]:
        """Return the command lines of its descendants that are still running."""
        return [
            (stat.parent / "cmdline").read_text().replace("\0", " ")
            for stat in Path("/proc").glob("[0-9]*/stat")
            if (fields := _fields(stat)) and fields[3] == str(self.process.pid) and fields[0] not in "ZX"
        ]

    def kill(self) -> None:
        """Kill all its processes."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            if (fields := _fields(stat)) and fields[3] == str(self.process.pid):
                os.kill(int(stat.parent.name), signal.SIGKILL)
        self.wait()


def _fields(stat: Path) -> list[str]:
    """Return a process's state, parent, group, session, and so on: proc(5), from the third field."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
