"""The directory where workers keep their metrics, and how those of ended workers are merged.

The arbiter imports this module, so it must not import the app (see `deploy/worker.py`).
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PREFIX = "backline-metrics-"
# The arbiter locks this file as long as it runs. Its forked workers do not hold the lock.
OWNER = "owner.lock"
# Locked while files are merged, and by `app/infra/metrics.py` while they are read.
MERGING = "merge.lock"
MERGE_SECONDS = 0.2

_COUNTS = re.compile(r"(counter|histogram|summary)_(\d+)\.db")
_owned: list[IO[bytes]] = []


def make_directory(parent: str | None) -> str:
    """Create this arbiter's directory, and remove those of arbiters that were killed. Returns its path."""
    parent = parent or tempfile.gettempdir()
    for found in Path(parent).glob(f"{PREFIX}*"):
        if _is_stale(found):
            shutil.rmtree(found, ignore_errors=True)
    path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    owner = (Path(path) / OWNER).open("wb")
    fcntl.lockf(owner, fcntl.LOCK_EX)
    _owned.append(owner)
    return path


def merge_dead(directory: str) -> None:
    """Merge the counters of ended processes into one file for each type, and remove their own files.

    If a reader does not finish in time, or the disk is full, this is left to the next call.
    """
    with suppress(OSError, ValueError), _merging(Path(directory)):
        for path in Path(directory).iterdir():
            name = _COUNTS.fullmatch(path.name)
            if name is not None and not _is_alive(int(name[2])):
                _merge(path, path.with_name(f"{name[1]}_merged.db"))


def _merge(source: Path, target: Path) -> None:
    from deploy.metrics_files import ReservedDict

    # Readers use every `*.db` file.
    copy = target.with_suffix(".new")
    copy.unlink(missing_ok=True)
    if target.exists():
        shutil.copyfile(target, copy)
    values = ReservedDict(str(copy))
    try:
        for key, value, timestamp, _ in ReservedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
            total = values.read_value(key)[0] + value  # type: ignore[no-untyped-call]
            values.write_value(key, total, timestamp)  # type: ignore[no-untyped-call]
    finally:
        values.close()  # type: ignore[no-untyped-call]
    copy.replace(target)
    source.unlink()


@contextmanager
def _merging(directory: Path) -> Iterator[None]:
    """Lock out readers while the block runs.

    Raises:
        BlockingIOError: A reader did not finish in time.
    """
    deadline = time.monotonic() + MERGE_SECONDS
    with (directory / MERGING).open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield


def _is_stale(directory: Path) -> bool:
    """Return whether a directory belongs to our user, and its arbiter has ended."""
    with suppress(OSError):
        if directory.stat().st_uid != os.geteuid():
            return False
        with (directory / OWNER).open("rb+") as owner:
            fcntl.lockf(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    # The lock is held, or not yet: an arbiter is about to take it. Or an earlier release made the directory.
    number = re.match(rf"{PREFIX}(\d+)-", directory.name)
    return not (directory / OWNER).exists() and number is not None and not _is_alive(int(number[1]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's process
    return True
