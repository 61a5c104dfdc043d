"""Python programs that tests run in separate processes."""

import subprocess
import sys
from collections.abc import Mapping
from textwrap import dedent
from typing import IO, Any

from tests.conftest import SETTINGS
from tests.helpers.servers import ROOT, process_environment

# Settings of a process that uses neither the database nor Redis.
OFFLINE = {
    **SETTINGS,
    "DATABASE_URL": "sqlite:////nowhere/backline.sqlite3",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "LOG_LEVEL": "INFO",
}


def program(code: str) -> list[str]:
    """Return the command that runs Python code."""
    return [sys.executable, "-c", dedent(code)]


def run_python(code: str, stderr: int | IO[bytes] = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run Python code that may import the app. Fail if it takes longer than two minutes."""
    return subprocess.run(
        program(code),
        cwd=ROOT,
        env=process_environment(OFFLINE),
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=120,
        check=False,
    )


def flask(env: Mapping[str, str], *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of `flask` in another process, with these settings."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi:app", *arguments],
        cwd=ROOT,
        env=process_environment(env),
        text=True,
        timeout=200,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )
    return done
