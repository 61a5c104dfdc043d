"""Metrics files with preallocated disk space, so that a full disk does not kill the process.

prometheus_client writes to sparse files through a mapping. When the file system is full, the kernel ends the
process that does (SIGBUS): every worker, and those that replace it.

Importing this imports prometheus_client, which must not happen before `PROMETHEUS_MULTIPROC_DIR` is set.
"""

import mmap
import os
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

INITIAL_BYTES = 1 << 16
# More than an entry needs in addition to its key.
_ENTRY_BYTES = 64


class ReservedDict(MmapedDict):
    """A dict in a file with preallocated disk space."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Open or create the file.

        Raises:
            OSError: The disk is full.
        """
        if not read_mode:
            _create(Path(filename))
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + _ENTRY_BYTES
        if needed > self._capacity:
            self._reserve(2 ** needed.bit_length())
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _reserve(self, size: int) -> None:
        os.posix_fallocate(self._f.fileno(), 0, size)


class WorkersDict(ReservedDict):
    """A dict that continues in memory when the disk is full. What it counts then ends with the process."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Open or create the file, or use memory instead."""
        try:
            super().__init__(filename, read_mode)
        except OSError:
            descriptor = os.memfd_create("metrics")
            super().__init__(f"/proc/self/fd/{descriptor}")
            os.close(descriptor)

    def _reserve(self, size: int) -> None:
        try:
            super()._reserve(size)
        except OSError:
            file: Any = os.fdopen(os.memfd_create("metrics"), "w+b")
            file.write(self._m[:])
            file.flush()
            self._m.close()
            self._f.close()
            self._f, self._m = file, mmap.mmap(file.fileno(), self._capacity)


def _create(path: Path) -> None:
    with path.open("a+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, INITIAL_BYTES)
        except OSError:
            if not os.fstat(file.fileno()).st_size:
                path.unlink()  # readers could not read it
            raise


def install() -> None:
    """Let prometheus_client use these files for the metrics of this process and its children."""
    vars(values)["MmapedDict"] = WorkersDict
