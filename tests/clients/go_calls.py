"""The calls of github.com/zmb3/spotify, which the Go program in tests/clients/zmb3 makes.

Needs Debian's packages golang-go and golang-golang-x-oauth2-dev, and a checkout of the library.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients.recording import Run, Target, parse_run
from tests.clients.world import FAILURES, ITEMS
from tests.helpers.servers import process_environment

PROGRAM = Path(__file__).parent / "zmb3" / "main.go"
DEBIAN_PACKAGES = "/usr/share/gocode"


@contextmanager
def built(checkout: Path) -> Iterator[Path]:
    """Build the program with a checkout of the library. Yields its path."""
    with tempfile.TemporaryDirectory(prefix="backline-go-") as home:
        package = Path(home, "src/github.com/zmb3/spotify/v2")
        package.parent.mkdir(parents=True)
        package.symlink_to(checkout.resolve())
        settings = {"GO111MODULE": "off", "GOPATH": f"{home}:{DEBIAN_PACKAGES}", "GOCACHE": f"{home}/cache"}
        program = Path(home, "calls")
        subprocess.run(
            ["go", "build", "-o", str(program), str(PROGRAM)], check=True, env=process_environment(settings)
        )
        yield program


def record(program: Path, target: Target) -> Run:
    """Make all calls."""
    argument = {
        "base_url": target.base_url,
        "token": target.token,
        "control_url": f"{target.sandbox.url}/_sandbox",
        "items": ITEMS,
        "failures": [
            {"name": name, "fault": {"on": "api", "times": None, **fault}} for name, fault in FAILURES.items()
        ],
    }
    done = subprocess.run(
        [program, json.dumps(argument)], check=True, capture_output=True, text=True, timeout=120
    )
    return parse_run(done.stdout, target)
