"""Child processes of tests: they end with the test, and have the default signals."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers.children import kill_children, start_child
from tests.helpers.servers import ROOT, eventually

IGNORES_SIGINT = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from tests.helpers.children import restore_default_signals
restore_default_signals()
code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
subprocess.run([sys.executable, "-c", code], check=True)
"""


def test_children_have_default_signals_even_if_pytest_ignores_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IGNORES_SIGINT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_children_and_their_children_are_killed() -> None:
    child = start_child(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    grandchild = child.stdout.readline().strip()
    kill_children()
    assert child.returncode == -signal.SIGKILL
    eventually(lambda: is_gone(Path("/proc", grandchild, "stat")))


def is_gone(stat: Path) -> bool:
    """Return whether a process has ended. A zombie has."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
