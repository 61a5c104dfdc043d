"""The scanners' programs: installed as locked, and run."""

import os
import shutil
import subprocess
from pathlib import Path

from script.bootstrap import PIPENV_HOME, BootstrapError, exclusive, install_apart
from tests.helpers import node
from tests.helpers.servers import Unavailable

HERE = Path(__file__).resolve().parent
PYTHON_SCANNERS = ("redbot", "sslyze", "wapiti")
# What a scanner may take at most, on a busy machine as well.
LIMIT_S = 240

# Why some are not there.
_problems: dict[str, str] = {}


class Incomplete(Exception):
    """A scanner ended before it had checked everything. The message is what it printed."""


def install() -> None:
    """Install the scanners from PyPI and npm. If that fails, each of them is unavailable."""
    for name in PYTHON_SCANNERS:
        try:
            with exclusive():
                install_apart(name, _environment(name), HERE / "Pipfile.lock", build=True)
        except BootstrapError as error:
            _problems[name] = str(error)
    try:
        node.install(HERE)
    except (Unavailable, AssertionError) as error:
        _problems["node"] = str(error)


def python_program(name: str) -> list[str]:
    """Return the beginning of the command of a scanner in Python.

    Raises:
        Unavailable: It could not be installed.
    """
    if name in _problems:
        raise Unavailable(_problems[name])
    # By itself, the program would not start after the project was moved.
    return [str(_environment(name) / "bin/python"), str(_environment(name) / "bin" / name)]


def _environment(name: str) -> Path:
    return PIPENV_HOME / f"scan-{name}"


def node_program(name: str) -> list[str]:
    """Return the beginning of the command of a scanner for Node.

    Raises:
        Unavailable: It could not be installed.
    """
    if "node" in _problems:
        raise Unavailable(_problems["node"])
    return [str(HERE / "node_modules/.bin" / name)]


def debian_program(name: str, package: str) -> list[str]:
    """Return the beginning of the command of a scanner from Debian.

    Raises:
        Unavailable: It is not installed.
    """
    if found := shutil.which(name):
        return [found]
    raise Unavailable(f"{name} is not installed: apt-get install {package}")


def output(command: list[str], **environ: str) -> str:
    """Run a command, whatever its status is, and return what it prints."""
    done = subprocess.run(
        command,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=LIMIT_S,
    )
    return done.stdout or done.stderr
