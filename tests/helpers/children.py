"""Child processes of a test, which are killed at its end."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from script.supervisor import ends_with_parent

_children: list[subprocess.Popen[Any]] = []


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a new process group. The options are Popen's."""
    options = {"process_group": 0, "preexec_fn": ends_with_parent(), **options}
    _children.append(subprocess.Popen(command, **options))
    return _children[-1]


def kill_children() -> None:
    """Kill the processes that the test has started, with their process groups."""
    while _children:
        child = _children.pop()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def restore_default_signals() -> None:
    """Give children the default signal handlers, even if `nohup` or `&` made this process ignore signals.

    Children inherit ignored signals, but not handlers.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
