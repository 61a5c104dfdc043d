"""Packages that only the benchmark needs, installed outside the project."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.progress import progress
from tests.helpers.servers import Unavailable

REQUIREMENTS = Path(__file__).with_name("alternatives")
INSTALL_SECONDS = 600


def python_environment(name: str) -> Path:
    """Return the bin directory of a virtual environment with the packages of `alternatives/{name}.txt`.

    Raises:
        Unavailable: The packages cannot be installed.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    home = _directory(name, requirements)
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        _run(name, [sys.executable, "-m", "venv", str(home)])
        _run(name, [str(home / "bin" / "pip"), "install", "--quiet", "--no-input", "-r", str(requirements)])
        (home / "complete").touch()
    return home / "bin"


def node_environment(name: str) -> Path:
    """Return a directory with the packages of `alternatives/{name}/package.json` in it.

    Raises:
        Unavailable: The packages cannot be installed.
    """
    source = REQUIREMENTS / name
    home = _directory(name, source / "package.json")
    if not (home / "complete").exists():
        if shutil.which("npm") is None:
            raise Unavailable("npm is not installed: apt-get install npm")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(source / "package.json", home)
        _run(name, ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(home)])
        (home / "complete").touch()
    for file in source.iterdir():
        shutil.copy(file, home)
    return home


def _directory(name: str, versions: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(versions.read_bytes()).hexdigest()[:8]
    return cache / "backline-bench" / f"{name}-{digest}"


def _run(name: str, command: list[str]) -> None:
    progress(f"{name}: {' '.join(command[:4])} …")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} cannot be installed: it took longer than {INSTALL_SECONDS} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{name} cannot be installed: {(done.stderr or done.stdout).strip()[-500:]}")
