"""Programs that live and die together, with real processes: each test runs a small supervisor of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.servers import eventually

ROOT = Path(__file__).resolve().parent.parent.parent

SUPERVISOR = """
import asyncio, os, sys
from script import supervisor
from script.supervisor import ProgramFailed, Programs, Stopped

async def main():
    async with Programs() as programs:
        async def start(name, code, **options):
            return await programs.start(name, sys.executable, "-uc", code, env=os.environ, **options)
        async def complete(name, code):
            await programs.complete(name, sys.executable, "-uc", code, env=os.environ)
{body}
        await programs.until_ended()

try:
    asyncio.run(main())
except (Stopped, ProgramFailed) as error:
    print(type(error).__name__, error, sep=": ")
"""

SLEEPS = "import os, time; print('pid', os.getpid()); time.sleep(600)"
# Takes a while to end when asked, and says when it does.
ENDS_SLOWLY = (
    "import signal, time; "
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print('ends'), exit(0))); "
    "print('up'); time.sleep(600)"
)
# Does not end when asked. Nor does another process that it starts, whose id it tells.
STUBBORN = (
    "import signal, subprocess, time; "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('pid', subprocess.Popen(['sleep', '600']).pid); time.sleep(600)"
)


class Supervisor:
    """A running supervisor and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.output = ""
        self._stdout = process.stdout

    def until(self, text: str) -> None:
        """Read until a line with `text` has been printed."""
        while text not in self.output:
            line = self._stdout.readline()
            assert line, f"{text!r} was never said:\n{self.output}"
            self.output += line

    def end(self, *signals: int) -> str:
        """Send signals, wait for the end, and return all that was printed."""
        for number in signals:
            self.process.send_signal(number)
        self.output += self._stdout.read()
        self.process.wait(20)
        return self.output

    def pid(self) -> int:
        """The process id that a program has told."""
        self.until("pid ")
        return int(self.output.partition("pid ")[2].split()[0])


@contextmanager
def supervisor(body: str) -> Iterator[Supervisor]:
    code = SUPERVISOR.format(body=textwrap.indent(textwrap.dedent(body).strip(), " " * 8))
    with subprocess.Popen(
        [sys.executable, "-uc", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield Supervisor(process)
        finally:
            process.kill()


def is_running(pid: int) -> bool:
    """Whether a process runs. One that has ended is gone, even before somebody asks for its status."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_the_end_of_one_is_the_end_of_all_and_is_told_with_its_last_lines() -> None:
    with supervisor(f"""
        first = await start("first", {SLEEPS!r})
        while not first.last_lines: await asyncio.sleep(0.01)
        await start("second", "print('line one'); print('line two'); raise SystemExit(3)")
    """) as running:
        output = running.end()
        assert (
            "ProgramFailed: second exited with status 3. Its last lines:\n    line one\n    line two\n"
            in output
        )
        assert not is_running(running.pid())


def test_work_is_given_up_when_a_program_ends() -> None:
    with supervisor("""
        await start("first", "pass")
        await programs.unless_ended(asyncio.sleep(600))
    """) as running:
        assert running.end() == "ProgramFailed: first exited with status 0.\n"


def test_a_command_that_fails_is_told() -> None:
    with supervisor("""
        await complete("good", "pass")
        await complete("bad", "raise SystemExit('no such table')")
    """) as running:
        assert running.end() == (
            "bad      | no such table\n"
            "ProgramFailed: bad exited with status 1. Its last lines:\n    no such table\n"
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(number: int) -> None:
    with supervisor(f"await start('only', {SLEEPS!r})") as running:
        pid = running.pid()
        assert running.end(number).endswith("Stopped: \n")
        assert not is_running(pid)


@pytest.mark.parametrize(
    "work",
    [
        # The work notices the end by itself, before or after it is given up.
        "signal_me(); await asyncio.sleep(0); raise Stopped",
        "signal_me(); await asyncio.sleep(600)",
        "try: signal_me(); await asyncio.sleep(600)\nexcept asyncio.CancelledError: raise Stopped",
        "signal_me(); await start('late', 'import time; time.sleep(600)'); await asyncio.sleep(600)",
        "await asyncio.gather(*(start(str(n), 'import time; time.sleep(600)') for n in range(5)), late())",
    ],
)
def test_an_end_that_several_notice_is_told_once(work: str) -> None:
    with supervisor(f"""
        import gc, signal
        def signal_me(): programs._end_with(Stopped())
        async def late():
            await asyncio.sleep(0.005)
            signal_me()
        async def work():
{textwrap.indent(work, " " * 12)}
        try:
            await programs.unless_ended(work())
        finally:
            gc.collect()
    """) as running:
        assert running.end() == "Stopped: \n"


def test_a_second_ctrl_c_does_not_cut_the_end_short() -> None:
    with supervisor(f"await start('slow', {ENDS_SLOWLY!r})") as running:
        running.until("up")
        assert running.end(signal.SIGINT, signal.SIGINT, signal.SIGTERM).endswith(
            "slow     | ends\nStopped: \n"
        )


def test_what_serves_others_ends_after_them() -> None:
    with supervisor(f"""
        await start("store", {ENDS_SLOWLY!r}, serves_others=True)
        await start("app", {ENDS_SLOWLY!r})
    """) as running:
        running.until("app      | up")
        running.until("store    | up")
        assert running.end(signal.SIGTERM).endswith("app      | ends\nstore    | ends\nStopped: \n")


def test_a_program_that_ignores_the_request_is_killed_with_all_it_started() -> None:
    with supervisor(f"""
        supervisor.GRACE_S = 0.2
        await start("stubborn", {STUBBORN!r})
    """) as running:
        grandchild = running.pid()
        assert "stubborn did not end within" in running.end(signal.SIGTERM)
        eventually(lambda: not is_running(grandchild))


def test_a_long_line_and_odd_bytes_are_passed_on() -> None:
    words = r"import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\xff\r\nno newline')"
    with supervisor(f"""
        await complete("loud", {words!r})
        await start("last", "pass")
    """) as running:
        output = running.end()
        assert output.startswith(f"loud     | {'x' * 300_000}\ufffd\nloud     | no newline\n")


def test_a_terminal_that_goes_away_does_not_keep_the_programs_alive() -> None:
    with supervisor(
        f"await start('only', {SLEEPS!r}); await start('loud', 'while True: print(1)')"
    ) as running:
        pid = running.pid()
        assert running.process.stdout is not None
        running.process.stdout.close()
        running.process.send_signal(signal.SIGHUP)
        running.process.wait(20)
        assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help for this is Linux's own")
def test_a_killed_supervisor_leaves_nothing_running() -> None:
    with supervisor(f"await start('only', {SLEEPS!r})") as running:
        pid = running.pid()
        os.kill(running.process.pid, signal.SIGKILL)
        eventually(lambda: not is_running(pid))
