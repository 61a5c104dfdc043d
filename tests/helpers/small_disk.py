"""MariaDB and Redis whose files are on a small disk of their own, which tests fill up."""

import errno
import os
import subprocess
from pathlib import Path

from tests.helpers.processes import MariaDb, Program, RedisServer
from tests.helpers.servers import Unavailable

_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
# $1 is where to mount, $2 the size, and $3 the folder whose content is copied.
_MOUNT = """
mount -t tmpfs -o size="$2" tmpfs "$1" && { [ -z "$3" ] || cp -a "$3" "$1"/; } && shift 3 && exec "$@"
"""


def require_own_mounts(folder: Path) -> None:
    """Raise `Unavailable` if this kernel does not let the user mount a disk."""
    command = [*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise Unavailable("this needs a kernel that lets users mount file systems of their own")


class _OnSmallDisk(Program):
    """A program that begins with a new disk each time it is started."""

    disk: Path

    def _mount(self, disk: Path, size: str, copied: Path | None = None) -> None:
        self.disk = disk
        disk.mkdir()
        mount = ["sh", "-c", _MOUNT, "sh", str(disk), size, str(copied or "")]
        self._command = [*_NAMESPACE, *mount, *self._command]

    @property
    def _filler(self) -> Path:
        """The file that takes all the space, as this process can see it."""
        return Path(f"/proc/{self.pid}/root{self.disk}/filler")

    def fill(self) -> None:
        """Leave no room on the disk."""
        descriptor = os.open(self._filler, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            for size in (1 << 20, 1 << 12):
                self._append(descriptor, bytes(size))
        finally:
            os.close(descriptor)

    def _append(self, descriptor: int, chunk: bytes) -> None:
        try:
            while True:
                os.write(descriptor, chunk)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)


class SmallMariaDb(_OnSmallDisk, MariaDb):
    def __init__(self, home: Path, *options: str) -> None:
        super().__init__(home)
        disk = home / "disk"
        # By default, the file that all tables share grows by the size of the disk.
        own = [f"--datadir={disk / 'data'}", f"--tmpdir={disk}", "--innodb-autoextend-increment=1"]
        own += ["--user=root", *options]
        self._command = [*self._command, *own]
        self._mount(disk, "64m", home / "data")


class SmallRedis(_OnSmallDisk, RedisServer):
    """It has a log of all changes, as deploy/install sets it up."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        disk = home / "disk"
        self._command = [*self._command, "--dir", str(disk), "--appendonly", "yes"]
        self._mount(disk, "4m")
