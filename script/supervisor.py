"""Runs programs side by side. When one ends, all end, and none outlives this process."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

GRACE_S = 5.0  # before a program that was asked to end is killed
POLL_S = 0.05
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# A server ends after the others, so that they do not report it missing. An optional program may end
# while the others go on, and a task is expected to end.
Role = Literal["client", "server", "optional", "task"]


class Stopped(Exception):
    """Ctrl-C, SIGTERM, or a closed terminal ends everything."""


class ProgramFailed(Exception):
    """A program ended on its own, or was not ready in time."""


class Program:
    """A program in its own process group, which a terminal's Ctrl-C does not reach."""

    def __init__(self, name: str, command: tuple[str, ...], env: Mapping[str, str], role: Role) -> None:
        self.name = name
        self.role = role
        self.last_lines: deque[str] = deque(maxlen=12)
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=ends_with_parent(),  # noqa: PLW1509 - it only calls prctl
        )
        self._relay = threading.Thread(target=self._relay_output, daemon=True)
        self._relay.start()

    @property
    def status(self) -> int | None:
        """The exit status, negative if a signal ended the program; None while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the program and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self._process.pid, number)

    def wait(self, limit_s: float | None = None) -> None:
        """Wait for the end, and until the output is printed."""
        self._process.wait(limit_s)
        self._relay.join(1)  # a descendant may keep the output open

    def failure(self) -> ProgramFailed:
        """Describe how the program ended, with its last lines."""
        self.wait()
        code = self.status or 0
        how = f"exited with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        lines = "".join(f"\n    {line}" for line in self.last_lines)
        return ProgramFailed(f"{self.name} {how}.{' Its last lines:' if lines else ''}{lines}")

    def _relay_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip("\r\n")
                self.last_lines.append(text)
                say(f"{self.name:<9}| {text}")


class Programs:
    """Programs that end together, when the context is left."""

    def __init__(self) -> None:
        self._programs: list[Program] = []
        self._stopped = False

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        _end_all([program for program in self._programs if program.role != "server"])
        _end_all([program for program in self._programs if program.role == "server"])

    def start(self, name: str, *command: str, env: Mapping[str, str], role: Role = "client") -> Program:
        """Start a program."""
        self._programs.append(Program(name, command, env, role))
        return self._programs[-1]

    def complete(self, task: Program, limit_s: float = float("inf")) -> None:
        """Wait until a task is done. Raise ProgramFailed if it fails, and otherwise as `wait_until`."""
        try:
            self.wait_until(lambda: task.status is not None, task.name, limit_s)
        finally:
            self.end(task)
        if task.status != 0:
            raise task.failure()

    def end(self, program: Program) -> None:
        """End a program while the others go on."""
        self._programs.remove(program)
        _end_all([program])

    def wait_until(self, condition: Callable[[], bool], name: str, limit_s: float) -> None:
        """Wait until the condition holds.

        Raises:
            ProgramFailed: If a program ends, or this takes longer than `limit_s`.
            Stopped: On Ctrl-C.
        """
        deadline = time.monotonic() + limit_s
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{name} was not ready within {limit_s:.0f} s.")
            time.sleep(POLL_S)
        self._check()

    def _check(self) -> None:
        if self._stopped:
            raise Stopped
        for program in list(self._programs):
            if program.status is None or program.role == "task":
                continue
            if program.role != "optional":
                raise program.failure()
            self.end(program)
            say(f"{program.failure()}\nEverything else keeps running.")

    def _stop(self, *_: object) -> None:
        self._stopped = True


def _end_all(programs: Iterable[Program]) -> None:
    """Ask programs to end, and kill what is left of them after GRACE_S."""
    for program in programs:
        program.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for program in programs:
        try:
            program.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{program.name} did not end within {GRACE_S:.0f} s; killing it.")
        program.signal(signal.SIGKILL)  # also for descendants of a program that has ended
        program.wait()


def ends_with_parent() -> Callable[[], None] | None:
    """Return what a child runs first, so that it ends even if this process is killed (Linux only)."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # looked up here: little is safe between fork and exec

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_kernel


def say(text: str) -> None:
    """Print a line at once, even if the terminal is gone: the programs must still be ended."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until this process ends
