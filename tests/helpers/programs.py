"""Python programs that tests run in separate processes."""

import subprocess
import sys
from textwrap import dedent
from typing import IO

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
