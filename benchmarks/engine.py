"""The refresh engine: how many tokens one process refreshes, and at what cost."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
import requests

from benchmarks.deployment import running_servers
from benchmarks.processes import memory_mib, running_http
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from benchmarks.rows import Database
from tests.conftest import ANY_PORT_REDIRECT_URI
from tests.helpers.servers import ROOT, free_port, process_environment

COMMAND = [sys.executable, "-m", "flask", "--app", "wsgi:app", "tokens", "refresh-due"]
# The rate must not be the limit, and a hundred calls of 100 ms can be in progress.
SETTINGS = {"REFRESH_RATE": "10000", "REFRESH_WORKERS": "64", "LOG_LEVEL": "INFO"}


@dataclass(frozen=True)
class Pass:
    """What a pass over all due connections has cost, in one or more processes."""

    refreshes: int
    seconds: float  # from the first call to the last
    cpu_seconds: float
    round_trips: int
    redis_commands: int
    memory: tuple[float, ...]  # MiB, every second

    @property
    def per_second(self) -> float:
        """Refreshes per second."""
        return self.refreshes / max(0.001, self.seconds)


class Engine:
    """Runs passes against a provider that takes 100 ms for each refresh."""

    def __init__(
        self, settings: Mapping[str, str], database: Database, provider: str, store: redis.Redis
    ) -> None:
        accounts = {"SPOTIFY_ACCOUNTS_URL": provider, "SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI}
        self._env = process_environment({**settings, **SETTINGS, **accounts})
        self._database = database
        self._provider = provider
        self._redis = store
        self._idle = Pass(0, 0, 0, 0, 0, ())
        self._idle = self.run()  # what a pass costs that finds nothing

    def run(self, processes: int = 1) -> Pass:
        """Make a pass in so many processes at the same time."""
        self._counts()
        before, redis_before = self._database.round_trips, self._redis_commands()
        running = [
            subprocess.Popen(
                COMMAND, cwd=ROOT, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            for _ in range(processes)
        ]
        try:
            cpu, memory = _watch(running)
        finally:
            for process in running:
                process.kill()
                process.wait()
        round_trips = self._database.round_trips - before
        redis_commands = self._redis_commands() - redis_before
        counts = self._counts()
        first, last = counts["first"] or [0], counts["last"] or [0]
        idle = self._idle
        return Pass(
            counts["refreshes"],
            last[0] - first[0],
            cpu - processes * idle.cpu_seconds,
            round_trips - processes * idle.round_trips,
            redis_commands - processes * idle.redis_commands,
            tuple(memory),
        )

    def _redis_commands(self) -> int:
        statistics: Any = self._redis.info("stats")
        return int(statistics["total_commands_processed"])

    def _counts(self) -> Any:
        with requests.Session() as http:
            http.trust_env = False
            return http.get(self._provider, timeout=10).json()


def _watch(running: list[subprocess.Popen[bytes]]) -> tuple[float, list[float]]:
    """Wait until all processes have ended. Return their CPU time, and the memory of the first one."""
    before = os.times()
    memory: list[float] = []
    while any(process.poll() is None for process in running):
        if running[0].returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                memory.append(memory_mib(running[0].pid))
        time.sleep(0.5)
    after = os.times()
    failed = [process for process in running if process.returncode != 0]
    assert not failed, f"flask tokens refresh-due ended with {failed[0].returncode}"
    return after.children_user + after.children_system - before.children_user - before.children_system, memory


def run(options: Options) -> Section:
    """Refresh 2,500 connections in one process, and as many in each of two."""
    count = 1_000 if options.quick else 2_500
    with running_engine() as (engine, database):
        database.insert_connections(2 * count)
        database.execute("UPDATE access_tokens SET due_at = NULL WHERE id > :count", {"count": count})
        progress(f"refreshing {count:,} connections in one process")
        one = engine.run()
        assert one.refreshes == count, f"{one.refreshes} of {count} connections were refreshed"
        database.make_due()
        progress(f"refreshing {2 * count:,} connections in two processes")
        two = engine.run(2)
        assert two.refreshes == 2 * count, f"{two.refreshes} of {2 * count} connections were refreshed"
    figures = [
        Figure("refreshes per second, one process", one.per_second, "/s", at_least=280),
        Figure("CPU time per refresh", one.cpu_seconds * 1000 / count, "ms", at_most=3.5),
        Figure("SQL round trips per refresh", one.round_trips / count, "", at_most=4),
        Figure("Redis commands per refresh", one.redis_commands / count, ""),
        Figure("memory of the process at the end", one.memory[-1], "MiB"),
        _two_processes(one, two),
    ]
    notes = [
        f"`flask tokens refresh-due`, {count:,} connections, REFRESH_RATE=10000, REFRESH_WORKERS=64.",
        "benchmarks/provider.py is the provider: it takes 100 ms for each refresh, with little CPU time.",
        "CPU time and round trips are in addition to those of a pass that finds nothing. MariaDB counts",
        "statements. BEGIN is subtracted, because it is sent together with the next statement.",
    ]
    return Section("Refresh engine", figures, notes, {"one": vars(one), "two": vars(two)})


def _two_processes(one: Pass, two: Pass) -> Figure:
    """Return the ratio of two processes to one, with its target if there are enough cores for it."""
    # Two schedulers, the provider, MariaDB, and Redis.
    enough = (os.cpu_count() or 1) >= 4
    name = "rate of two processes" if enough else "rate of two processes (the target needs 4 cores)"
    return Figure(name, two.per_second / one.per_second, "x", at_least=1.7 if enough else None)


def run_memory(options: Options) -> Section:
    """Refresh 200,000 connections in one pass, and see whether memory grows."""
    count = 5_000 if options.quick else 200_000
    with running_engine() as (engine, database):
        database.insert_connections(count)
        progress(f"refreshing {count:,} connections")
        one = engine.run()
    assert one.refreshes == count, f"{one.refreshes} of {count} connections were refreshed"
    part = max(1, len(one.memory) // 10)
    early, late = max(one.memory[part : 2 * part]), max(one.memory[-part:])
    figures = [
        Figure("refreshes per second", one.per_second, "/s"),
        Figure("memory after a tenth", early, "MiB"),
        Figure("memory at the end, compared with that", late / early, "x", at_most=1.1),
    ]
    notes = [f"One pass over {count:,} connections; the largest values in the second and the last tenth."]
    return Section("Memory of the refresh engine", figures, notes, {"memory": one.memory})


@contextmanager
def running_engine() -> Iterator[tuple[Engine, Database]]:
    """Start a database, Redis, and the provider."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.provider", str(port)]
    with running_servers() as servers, running_http(command, port, {}) as (url, _):
        database = Database(servers.database_url)
        with redis.Redis.from_url(servers.redis_url) as store:
            yield Engine(servers.settings, database, url, store), database
