"""Clones of the project to run scripts in, and PATHs with selected programs."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.servers import free_port
from tests.script.running import Environ, Run, Running

ROOT = Path(__file__).resolve().parent.parent.parent
NOT_IN_GIT = (
    *(".venv", ".pipenv", ".git", ".env", "instance", "__pycache__", ".*_cache", ".hypothesis"),
    *("node_modules", "dist"),
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project as git would clone it: without packages and .env."""
    copy = tmp_path / "clone"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_IN_GIT))
    return copy


@pytest.fixture
def checkout(clone: Path) -> Path:
    """A bootstrapped clone, which shares this project's .venv: installing takes too long."""
    (clone / ".venv").symlink_to(ROOT / ".venv")
    return clone


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., str]:
    """Make a PATH with basic tools, Python, and programs with the given shell code."""

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
    """The environment without anything that configures the app, pip, or pipenv."""
    steering = (
        "PIP",
        "PYTHON",
        "VIRTUAL_ENV",
        "FLASK",
        "APP_",
        "SPOTIFY_",
        "DATABASE_",
        "REDIS_",
        "FRONTEND_",
        "CORS_",
        "VITE_",
        "CI",
        "PORT",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}


@pytest.fixture
def environ(bare_environment: Environ) -> Environ:
    """Use free ports, since script/server may be running. No demo app."""
    spotify, port = f"http://127.0.0.1:{free_port()}", free_port()
    return {
        **bare_environment,
        "PORT": str(port),
        "FRONTEND_URL": f"http://127.0.0.1:{port}/api/docs",
        "SPOTIFY_ACCOUNTS_URL": spotify,
        "SPOTIFY_API_URL": f"{spotify}/v1",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }


@pytest.fixture
def run(checkout: Path) -> Iterator[Run]:
    """Start script/server in the checkout."""
    started: list[Running] = []

    def start(environ: Environ) -> Running:
        started.append(Running(checkout, environ))
        return started[-1]

    yield start
    for running in started:
        running.kill()


@pytest.fixture
def without(tmp_path: Path, environ: Environ) -> Callable[..., str]:
    """Make a PATH without some programs."""

    def path_without(*programs: str) -> str:
        folder = tmp_path / "path"
        folder.mkdir()
        for directory in environ["PATH"].split(os.pathsep):
            for program in Path(directory).glob("*"):
                link = folder / program.name
                if program.name not in programs and not link.is_symlink():
                    link.symlink_to(program)
        return str(folder)

    return path_without
