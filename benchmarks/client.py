"""Send requests as fast as a server responds, and measure what they cost."""

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Target
from tests.helpers.servers import Unavailable

CONNECTIONS = 16
WARM_UP_REQUESTS, WARM_UP_SECONDS = 3000, 10
SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Round:
    """What one run of wrk measured. Times are in seconds, and latencies in milliseconds."""

    requests: int
    seconds: float
    failed: int
    cpu_seconds: float
    p50: float
    p99: float
    max: float

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of the server per request."""
        return self.cpu_seconds * 1000 / max(1, self.requests)

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def measure(
    target: Target, seconds: float, connections: int = CONNECTIONS, pause_ms: float | None = None
) -> Round:
    """Send requests over `connections` connections for so many seconds.

    With `pause_ms`, each connection pauses for so long on average before each request.

    Raises:
        Unavailable: wrk is not installed.
        AssertionError: A request failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise Unavailable("wrk is not installed: apt-get install wrk")
    command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    for name, value in target.headers.items():
        command += ["-H", f"{name}: {value}"]
    env = {**os.environ, "WRK_BODY": target.body, "WRK_PAUSE_MS": f"{pause_ms or ''}"}
    before = target.tree.cpu_seconds
    done = subprocess.run(
        [*command, "-s", str(SCRIPT), target.url], capture_output=True, text=True, check=True, env=env
    )
    used = target.tree.cpu_seconds - before
    found = json.loads(done.stdout.strip().splitlines()[-1])
    latencies = {name: found[name] / 1000 for name in ("p50", "p99", "max")}
    result = Round(found["requests"], found["seconds"], found["failed"], used, **latencies)
    assert result.failed == 0, f"{target.name}: {result.failed} of {result.requests} requests failed"
    return result


def median(rounds: Sequence[Round], attribute: str) -> float:
    """Return the median of an attribute, such as `cpu_ms`."""
    return float(statistics.median(getattr(one, attribute) for one in rounds))


def warm_up(target: Target) -> None:
    """Fill pools and caches, and let a just-in-time compiler see thousands of requests."""
    done = 0
    for _ in range(WARM_UP_SECONDS):
        done += measure(target, 1).requests
        if done >= WARM_UP_REQUESTS:
            return
