"""How a process says that it cannot start."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

# Starting the process again would not help. After any other status than this one, gunicorn would replace a
# worker forever, and so would systemd (`RestartPreventExitStatus`).
EXIT_STATUS = 3


def refuse_to_start(problems: str) -> NoReturn:
    """Show the operator what is wrong, without a traceback, and exit with `EXIT_STATUS`."""
    from werkzeug.serving import is_running_from_reloader

    stream = sys.stderr if _log_is_writable() else sys.stdout
    with suppress(OSError):  # the disk may be full
        stream.write(f"Backline cannot start. Correct this:\n{problems}\n")
    # By status 3, the child process of `flask run --reload` would ask for a restart.
    sys.exit(1 if is_running_from_reloader() else EXIT_STATUS)


def unwritable_log() -> Iterator[str]:
    """Say how to give the log a place, if it has none."""
    if not _log_is_writable():
        yield "Standard error cannot be written to, and the log goes there. Redirect it to a file."


def _log_is_writable() -> bool:
    """Return whether standard error is open for writing. The disk may be full: lines are dropped then.

    If it is closed, its number soon belongs to another file, such as a connection to MySQL.
    """
    with suppress(OSError):
        mode = fcntl.fcntl(2, fcntl.F_GETFL) & os.O_ACCMODE
        return sys.stderr is not None and mode != os.O_RDONLY
    return False
