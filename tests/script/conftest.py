"""A checkout of one's own to run the scripts in, and a machine that has only what it is given."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_BEHIND = (".venv", ".pipenv", ".git", ".env", "instance", "__pycache__", ".*_cache", ".hypothesis")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project as git would clone it: nothing is installed, there is no .env."""
    copy = tmp_path / "clone"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    return copy


@pytest.fixture
def checkout(clone: Path) -> Path:
    """A clone that is bootstrapped: it shares this project's .venv, which takes too long to make."""
    (clone / ".venv").symlink_to(ROOT / ".venv")
    return clone


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., str]:
    """Makes a PATH with a shell's basic tools, Python, and programs that do nothing but exit as given."""

    def with_programs(**programs: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for tool in ("sh", "dirname", "basename", "sed"):
            (folder / tool).symlink_to(shutil.which(tool) or "")
        base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        for name, body in {"python3": f'exec {base} "$@"', **programs}.items():
            program = folder / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        return str(folder)

    return with_programs


@pytest.fixture
def bare_environment() -> dict[str, str]:
    """The environment without anything that could steer the app, pip or pipenv."""
    steering = (
        "PIP",
        "PYTHON",
        "VIRTUAL_ENV",
        "FLASK",
        "APP_",
        "SPOTIFY_",
        "DATABASE_",
        "REDIS_",
        "CI",
        "PORT",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}
