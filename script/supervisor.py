"""Runs programs side by side: none outlives the others, and none outlives this process.

ProgramsEnd           the reason why everything ends
├── Stopped           somebody asked for it: Ctrl-C, SIGTERM, or the terminal was closed
└── ProgramFailed     a program ended by itself
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

# How long a program may take to end when asked, before it is killed.
GRACE_S = 5.0
# How much of what a program said is repeated when it has failed.
LAST_LINES = 12
# The width that the programs' names are padded to in front of their lines.
NAME_WIDTH = 9

PR_SET_PDEATHSIG = 1  # linux/prctl.h

T = TypeVar("T")


class ProgramsEnd(Exception):
    """Why everything ends."""


class Stopped(ProgramsEnd):
    """Somebody asked for the end: Ctrl-C, SIGTERM, or the terminal was closed."""


class ProgramFailed(ProgramsEnd):
    """A program ended by itself. The message has its last lines."""


class Program:
    """One running program, in a process group of its own: a terminal's Ctrl-C does not reach it by itself."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, *, serves_others: bool) -> None:
        self.name = name
        self.serves_others = serves_others
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = process
        self._relay = asyncio.create_task(self._relay_output())

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for the program's end. Returns its exit status, negative when a signal ended it."""
        return await self._process.wait()

    async def said_all(self) -> None:
        """Wait until everything it said is printed, but not for a descendant that keeps its output open."""
        await asyncio.wait({self._relay}, timeout=1)

    def signal(self, number: int) -> None:
        """Send a signal to the program and all that it started; nothing happens when none is left."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            os.killpg(self._process.pid, number)

    async def _relay_output(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._print(line)
        if rest:
            self._print(rest)

    def _print(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self.last_lines.append(text)
        say(f"{self.name:<{NAME_WIDTH}}| {text}")


class Programs:
    """Programs that live and die together, as an async context: leaving it ends every one of them."""

    def __init__(self) -> None:
        self._running: list[Program] = []
        self._watches: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._at_birth = dies_with_parent()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # It stays in place while everything is ending, so a second Ctrl-C cannot cut that short.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on
                loop.add_signal_handler(number, self._end_with, Stopped())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.cancel()
        await self._stop_all()

    async def start(
        self,
        name: str,
        *command: str,
        env: Mapping[str, str],
        serves_others: bool = False,
        may_end: bool = False,
    ) -> Program:
        """Start a program that is to run until the end. Its end is everybody's end, unless it may end.

        One that serves others is ended after them, so that none of them complains of its absence.
        """
        program = await self._spawn(name, command, env, serves_others=serves_others)
        watch = asyncio.create_task(self._watch(program, may_end=may_end))
        self._watches.add(watch)
        return program

    async def complete(self, name: str, *command: str, env: Mapping[str, str]) -> None:
        """Run a program to its end.

        Raises:
            ProgramFailed: it did not exit 0.
        """
        program = await self._spawn(name, command, env, serves_others=False)
        try:
            status = await program.ended()
        except asyncio.CancelledError:  # nobody waits for it any more
            program.signal(signal.SIGTERM)
            raise
        await program.said_all()
        self._running.remove(program)
        if status != 0:
            raise _failure(program, status)

    async def unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, given up as soon as the end has come.

        Raises:
            ProgramsEnd: why the end has come.
        """
        task = asyncio.create_task(work)
        either: set[asyncio.Future[Any]] = {task, self._end}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # it may have noticed the end by itself; asyncio complains of errors unseen
            await self.until_ended()
        return task.result()

    async def until_ended(self) -> None:
        """Wait for the end.

        Raises:
            ProgramsEnd: why it has come. It never just returns.
        """
        await asyncio.shield(self._end)

    async def _spawn(
        self, name: str, command: Sequence[str], env: Mapping[str, str], *, serves_others: bool
    ) -> Program:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
            preexec_fn=self._at_birth,
        )
        program = Program(name, process, serves_others=serves_others)
        if self._end.done():  # the end came first, and does not know of this one
            program.signal(signal.SIGKILL)
            await program.ended()
            await program.said_all()
            raise Stopped
        self._running.append(program)
        return program

    async def _watch(self, program: Program, *, may_end: bool) -> None:
        status = await program.ended()
        await program.said_all()
        if may_end:
            say(f"{_failure(program, status)}\nEverything else goes on.")
        else:
            self._end_with(_failure(program, status))

    def _end_with(self, reason: ProgramsEnd) -> None:
        if not self._end.done():
            self._end.set_exception(reason)
            self._end.exception()  # seen, even if nobody comes to wait for the end any more

    async def _stop_all(self) -> None:
        """End the programs, those that use others first."""
        for serves_others in (False, True):
            await _stop([program for program in self._running if program.serves_others is serves_others])
        for watch in self._watches:
            watch.cancel()


async def _stop(programs: Sequence[Program]) -> None:
    """Ask programs to end, and kill what is left of them after `GRACE_S`."""
    for program in programs:
        program.signal(signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            for program in programs:
                await program.ended()
    for program in programs:
        if program.is_running:
            say(f"{program.name} did not end within {GRACE_S:.0f} s; killing it.")
        program.signal(signal.SIGKILL)  # also for what a program that has ended left behind
        await program.ended()
        await program.said_all()


def _failure(program: Program, status: int) -> ProgramFailed:
    how = f"exited with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
    said = "".join(f"\n    {line}" for line in program.last_lines)
    return ProgramFailed(f"{program.name} {how}.{' Its last lines:' if said else ''}{said}")


def dies_with_parent() -> Callable[[], None] | None:
    """What a child runs before its program so that it ends even when this process is killed (Linux only)."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # looked up here, because little is safe between fork and exec

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before the kernel knew
            os._exit(1)

    return ask_kernel


def say(text: str) -> None:
    """Print a line at once. A terminal that has gone away must not keep the programs from being ended."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of this process's life
