"""Node packages that tests use, installed as locked."""

import fcntl
import subprocess
from pathlib import Path

from script.demo import DemoUnavailable, is_installed, require_node
from tests.helpers.servers import Unavailable

ROOT = Path(__file__).resolve().parent.parent.parent
# Libraries and servers of others that tests run against.
TEST_PACKAGES = ROOT / "tests/node"


def install(folder: Path) -> Path:
    """Install the packages of a folder's package-lock.json, and return its `node_modules`.

    Raises:
        Unavailable: Node or npm is missing or too old.
    """
    try:
        require_node()
    except DemoUnavailable as error:
        raise Unavailable(f"the packages of {folder.name} cannot be installed: {error}") from error
    with (folder / "package-lock.json").open() as lock:  # there may be several test processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_installed(folder):
            run(folder, "npm", "ci", "--include=dev")
    return folder / "node_modules"


def run(folder: Path, *command: str, environ: dict[str, str] | None = None) -> str:
    """Run a program in a folder, and return its output."""
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout
