"""The file `.env`."""

import io
import os
import shlex
import stat
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from dotenv import dotenv_values


def read(path: Path) -> dict[str, str]:
    """Return the variables in the file. Warns once, on standard error, if other users can read it.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    found = dotenv_values(stream=io.StringIO(path.read_text(encoding="utf-8-sig")))
    _warn_of_readable_file(path)
    return {name: value for name, value in found.items() if value is not None}


@cache
def _warn_of_readable_file(path: Path) -> None:
    status = path.stat()
    # If another user owns the file, we may be meant to read it through its group.
    is_ours = status.st_uid == os.geteuid()
    if status.st_mode & (stat.S_IRGRP | stat.S_IROTH if is_ours else stat.S_IROTH):
        remedy = f"chmod {'600' if is_ours else 'o-rwx'} {shlex.quote(str(path))}"
        with suppress(OSError):  # the disk may be full
            sys.stderr.write(f"Other users can read {path}, which holds secrets. Run: {remedy}\n")
