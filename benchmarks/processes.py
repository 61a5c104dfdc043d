"""Start servers to compare, and measure the CPU time and memory that they use."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.helpers.servers import ROOT, Server, process_environment, running_program

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
WORKERS, THREADS, KEEPALIVE_SECONDS = 2, 8, 75


@dataclass(frozen=True)
class Tree:
    """A process with all its descendants."""

    pid: int

    @property
    def pids(self) -> list[int]:
        """The process ids, the root's first."""
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that the processes have used so far, in user and kernel mode."""
        return sum(cpu_seconds(pid) for pid in self.pids)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def memory_mib(pid: int, kind: str = "Rss") -> float:
    """Return the memory of a process in MiB: `Rss`, or `Pss`, which divides shared pages by their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {kind} of process {pid}")


@dataclass(frozen=True)
class Target:
    """A URL to measure, the headers to send, and the server that responds."""

    name: str
    url: str
    tree: Tree
    headers: Mapping[str, str] = field(default_factory=dict)
    # Members that the JSON body must have, and headers.
    expected: Mapping[str, object] = field(default_factory=dict)
    expected_headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""  # JSON, for a POST request

    def check(self) -> None:
        """Require the correct response.

        Raises:
            AssertionError: The response is another one.
        """
        with requests.Session() as http:
            http.trust_env = False
            method, body = ("POST", self.body) if self.body else ("GET", None)
            headers = dict(self.headers)
            response = http.request(
                method, self.url, headers=headers, data=body, timeout=30, allow_redirects=False
            )
        assert response.status_code == 200, f"{self.name}: {response.status_code} {response.text}"
        for path, value in self.expected.items():
            found = response.json()
            for name in path.split("."):
                found = found[name]
            assert found == value, f"{self.name}: {path} is {found!r}: {response.text}"
        for name, text in self.expected_headers.items():
            assert response.headers.get(name) == text, f"{self.name}: {name} is {response.headers.get(name)}"


def tree_of(server: Server) -> Tree:
    """Return the processes of a running server."""
    return Tree(server.processes[0])


@contextmanager
def running_gunicorn(
    app: str,
    env: Mapping[str, str],
    port: int,
    *,
    cwd: Path = ROOT,
    python: str = sys.executable,
    worker_class: str = "gthread",
) -> Iterator[tuple[str, Tree]]:
    """Run a WSGI application under gunicorn. Yields its URL and its processes."""
    command = [python, "-m", "gunicorn", app, "--worker-class", worker_class, "--bind", f"127.0.0.1:{port}"]
    command += ["--workers", str(WORKERS), "--threads", str(THREADS)]
    command += ["--keep-alive", str(KEEPALIVE_SECONDS), "--no-control-socket"]
    with running_http(command, port, env, cwd=cwd) as (url, tree):
        yield url, tree


@contextmanager
def running_http(
    command: list[str], port: int, env: Mapping[str, str], *, cwd: Path = ROOT, ready: str = "/"
) -> Iterator[tuple[str, Tree]]:
    """Run a server until the end of the block. Yields its URL, when `ready` responds, and its processes."""
    url = f"http://127.0.0.1:{port}"

    def responds() -> bool:
        with requests.Session() as http:
            http.trust_env = False
            return http.get(f"{url}{ready}", timeout=5).status_code < 500

    with running_program(command, responds, env=process_environment(env), cwd=cwd) as process:
        yield url, Tree(process.pid)


def version(*command: str) -> str:
    """Return the first line that a program prints about its version."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "not installed"
    return (done.stdout or done.stderr).strip().partition("\n")[0]
