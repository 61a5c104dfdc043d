"""script/supervisor.py, with real processes: each test runs a small supervisor."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.children import start_child
from tests.helpers.servers import LONG, eventually

ROOT = Path(__file__).resolve().parent.parent.parent

SUPERVISOR = """
import os, sys, time
from script import supervisor
from script.supervisor import ProgramFailed, Programs, Stopped

try:
    with Programs() as programs:
        def start(name, code, **options):
            return programs.start(name, sys.executable, "-uc", code, env=os.environ, **options)
{body}
        programs.wait_until(lambda: False, "", float("inf"))
except (Stopped, ProgramFailed) as error:
    print(type(error).__name__, error, sep=": ")
"""

SLEEPS = "import os, time; print('pid', os.getpid()); time.sleep(600)"
# Ends slowly, and prints when it does.
ENDS_SLOWLY = (
    "import signal, time; "
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print('ends'), exit(0))); "
    "print('up'); time.sleep(600)"
)
# Ignores SIGTERM, as does its child, whose process id it prints.
IGNORES_SIGTERM = (
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
            assert line, f"{text!r} was never printed:\n{self.output}"
            self.output += line

    def end(self, *signals: int) -> str:
        """Send signals, wait for the end, and return the whole output."""
        for number in signals:
            self.process.send_signal(number)
        self.output += self._stdout.read()
        self.process.wait(LONG)
        return self.output

    def pid(self) -> int:
        """Return the process id that a program printed."""
        self.until("pid ")
        return int(self.output.partition("pid ")[2].split()[0])


@contextmanager
def supervisor(body: str) -> Iterator[Supervisor]:
    code = SUPERVISOR.format(body=textwrap.indent(textwrap.dedent(body).strip(), " " * 8))
    command = [sys.executable, "-uc", code]
    process = start_child(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield Supervisor(process)
    finally:
        process.kill()


def is_running(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_end_of_one_program_ends_all_and_shows_its_last_lines() -> None:
    with supervisor(f"""
        first = start("first", {SLEEPS!r})
        programs.wait_until(lambda: first.last_lines, "", 60)
        start("second", "print('line one'); print('line two'); raise SystemExit(3)")
    """) as running:
        output = running.end()
        assert (
            "ProgramFailed: second exited with status 3. Its last lines:\n    line one\n    line two\n"
            in output
        )
        assert not is_running(running.pid())


def test_waiting_ends_when_a_program_ends() -> None:
    with supervisor("""
        start("first", "pass")
        programs.wait_until(lambda: False, "something", 600)
    """) as running:
        assert running.end() == "ProgramFailed: first exited with status 0.\n"


def test_waiting_ends_at_its_limit() -> None:
    with supervisor("programs.wait_until(lambda: False, 'redis', 0.1)") as running:
        assert running.end() == "ProgramFailed: redis was not ready within 0 s.\n"


def test_task_that_fails_shows_its_last_lines() -> None:
    with supervisor("""
        programs.complete(start("good", "pass", role="task"))
        programs.complete(start("bad", "raise SystemExit('no such table')", role="task"))
    """) as running:
        assert running.end() == (
            "bad      | no such table\n"
            "ProgramFailed: bad exited with status 1. Its last lines:\n    no such table\n"
        )


def test_task_that_exceeds_its_limit_is_ended() -> None:
    with supervisor(f"programs.complete(start('npm', {SLEEPS!r}, role='task'), 1)") as running:
        assert "ProgramFailed: npm was not ready within 1 s.\n" in running.end()
        assert not is_running(running.pid())


def test_end_of_an_optional_program_ends_nothing_else() -> None:
    with supervisor(f"""
        start("needed", {SLEEPS!r})
        start("extra", "raise SystemExit(2)", role="optional")
    """) as running:
        running.until("extra exited with status 2.\nEverything else keeps running.\n")
        assert is_running(running.pid())
        assert running.end(signal.SIGTERM).endswith("Stopped: \n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_everything(number: int) -> None:
    with supervisor(f"start('only', {SLEEPS!r})") as running:
        pid = running.pid()
        assert running.end(number).endswith("Stopped: \n")
        assert not is_running(pid)


def test_second_ctrl_c_does_not_cut_the_end_short() -> None:
    with supervisor(f"start('slow', {ENDS_SLOWLY!r})") as running:
        running.until("up")
        assert running.end(signal.SIGINT, signal.SIGINT, signal.SIGTERM).endswith(
            "slow     | ends\nStopped: \n"
        )


def test_servers_end_after_their_clients() -> None:
    with supervisor(f"""
        start("store", {ENDS_SLOWLY!r}, role="server")
        start("app", {ENDS_SLOWLY!r})
    """) as running:
        running.until("app      | up")
        running.until("store    | up")
        assert running.end(signal.SIGTERM).endswith("app      | ends\nstore    | ends\nStopped: \n")


def test_program_that_does_not_end_is_killed_with_its_children() -> None:
    with supervisor(f"""
        supervisor.GRACE_S = 0.2
        start("stubborn", {IGNORES_SIGTERM!r})
    """) as running:
        grandchild = running.pid()
        assert "stubborn did not end within" in running.end(signal.SIGTERM)
        eventually(lambda: not is_running(grandchild))


def test_long_lines_and_invalid_bytes_are_relayed() -> None:
    words = r"import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\xff\r\nno newline')"
    with supervisor(f"""
        programs.complete(start("loud", {words!r}, role="task"))
        start("last", "pass")
    """) as running:
        output = running.end()
        assert output.startswith(f"loud     | {'x' * 300_000}\ufffd\nloud     | no newline\n")


def test_programs_end_even_if_the_terminal_is_gone() -> None:
    with supervisor(f"start('only', {SLEEPS!r}); start('loud', 'while True: print(1)')") as running:
        pid = running.pid()
        assert running.process.stdout is not None
        running.process.stdout.close()
        running.process.send_signal(signal.SIGHUP)
        running.process.wait(LONG)
        assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_killed_supervisor_leaves_nothing_running() -> None:
    with supervisor(f"start('only', {SLEEPS!r})") as running:
        pid = running.pid()
        os.kill(running.process.pid, signal.SIGKILL)
        eventually(lambda: not is_running(pid))
