"""Lets one script/server start at a time in a folder."""

import fcntl
from pathlib import Path
from typing import IO

from script.env_file import CannotStartError


def lock_start() -> IO[str]:
    """Return a lock on starting in this folder, to be closed when everything has started.

    Raises:
        CannotStartError: Another script/server is starting here.
    """
    lock = Path(__file__).open(encoding="utf-8")  # noqa: SIM115 - kept open; nothing is written
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CannotStartError("script/server is already starting in this folder.") from None
    except OSError:
        pass  # some network file systems have no locks
    return lock
