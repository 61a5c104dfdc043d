"""How cost grows: with rows, sessions, clients, and workers."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import redis

from benchmarks import client, plots, routes
from benchmarks.deployment import Deployment, Servers, running_backline, running_servers
from benchmarks.engine import COMMAND
from benchmarks.plots import Point
from benchmarks.processes import Target
from benchmarks.progress import Options, progress
from benchmarks.results import RESULTS, Figure, Section
from benchmarks.rows import Database
from tests.conftest import ANY_PORT_REDIRECT_URI
from tests.helpers.servers import ROOT, process_environment

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)
CLIENTS, WORKERS = (1, 4, 16, 64, 256, 512), (1, 2, 4)
SESSION = "/api/session"
PASS_SECONDS = 8  # until a pass has made its first claims


def run_due(options: Options) -> Section:
    """Find the connections that are due, by the product's own queries, among more and more rows."""
    found: dict[int, float] = {}
    plan = ""
    with running_servers() as servers:
        database = Database(servers.database_url)
        database.execute("SET GLOBAL innodb_buffer_pool_size = 2 * 1024 * 1024 * 1024")
        for size in QUICK_SIZES if options.quick else SIZES:
            progress(f"{size:,} connections")
            database.fill_connections(size)
            database.execute("ANALYZE TABLE access_tokens")
            queries = list(_queries_of_a_pass(servers, database))
            assert queries, "the pass made no query for what is due"
            database.release_claims()
            times = {query: database.milliseconds(query) for query in queries}
            slowest = max(queries, key=lambda query: times[query])
            found[size] = times[slowest]
            plan = str(tuple(database.execute(f"EXPLAIN {slowest}")[0]))
    plots.draw(
        RESULTS / "due.svg",
        "Finding connections that are due",
        "connections",
        "ms",
        {"query": [*found.items()]},
    )
    figures = [
        Figure(f"among {size:,} connections", value, "ms", at_most=20) for size, value in found.items()
    ]
    notes = [
        "The slowest SELECT of what is due that `flask tokens refresh-due` sends; median of 20.",
        "One in 90 connections is due, as at each tick of the scheduler.",
        f"EXPLAIN: `{plan}`",
        "Plot: benchmarks/results/due.svg.",
    ]
    return Section("Finding connections that are due", figures, notes)


def _queries_of_a_pass(servers: Servers, database: Database) -> Iterator[str]:
    """Begin a pass, and yield its queries for rows that are due, as it sent them."""
    settings = {**servers.settings, "SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI}
    env = process_environment(settings)
    database.execute("TRUNCATE mysql.general_log")
    database.execute("SET GLOBAL log_output = 'TABLE', GLOBAL general_log = 1")
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(COMMAND, cwd=ROOT, env=env, capture_output=True, timeout=PASS_SECONDS, check=False)
    database.execute("SET GLOBAL general_log = 0")
    seen = set()
    for (text,) in database.execute("SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log"):
        if text.startswith("SELECT") and "due_at <=" in text and text not in seen:
            seen.add(text)
            yield text


def run_growth(options: Options) -> Section:
    """Measure the session route with more rows, sessions, clients, and workers."""
    lines: dict[str, list[Point]] = {}
    with running_servers() as servers:
        database = Database(servers.database_url)
        database.execute("SET GLOBAL innodb_buffer_pool_size = 2 * 1024 * 1024 * 1024")
        with running_backline(servers, routes.SHARED) as backline:
            target = session_target(backline)
            client.warm_up(target)
            lines["clients"] = [(count, _rate(target, options, count)) for count in CLIENTS]
            sizes = QUICK_SIZES if options.quick else SIZES
            for name, fill in (("rows", database.fill_connections), ("sessions", _sessions(servers))):
                lines[name] = []
                for size in sizes:
                    progress(f"{size:,} {name}")
                    fill(size)
                    lines[name].append((size, _cost(target, options)))
        lines["workers"] = list(_workers(servers, options))
    for name, line in lines.items():
        y_name = "CPU ms per request" if name in ("rows", "sessions") else "requests per second"
        plots.draw(RESULTS / f"growth-{name}.svg", f"GET {SESSION}: {name}", name, y_name, {SESSION: line})
    figures = [
        Figure(f"{plots.short(x)} {name}", y, "ms" if name in ("rows", "sessions") else "/s")
        for name, line in lines.items()
        for x, y in line
    ]
    notes = [
        f"GET {SESSION}: CPU time per request with more rows and sessions,",
        "and rate with more clients and workers.",
        "Plots: benchmarks/results/growth-*.svg.",
    ]
    return Section("Growth", figures, notes)


def session_target(backline: Deployment, username: str = "ada") -> Target:
    """Sign in, and return the session route."""
    person = str(backline.sandbox.seed(1)[0]["id"])
    cookie = backline.connect(person, username)
    return backline.target(SESSION, cookie, {"authenticated": True, "spotify.status": "connected"})


def _rate(target: Target, options: Options, connections: int) -> float:
    progress(f"{connections} clients")
    return client.measure(target, options.seconds, connections).per_second


def _cost(target: Target, options: Options) -> float:
    return client.median([client.measure(target, options.seconds) for _ in range(3)], "cpu_ms")


def _sessions(servers: Servers) -> Callable[[int], None]:
    """Return a function that fills Redis with as many values of the size of a session."""

    def fill(count: int) -> None:
        with redis.Redis.from_url(servers.redis_url) as store:
            for start in range(store.dbsize(), count, 10_000):
                values = {
                    f"benchmark:{number}": b"x" * 400 for number in range(start, min(start + 10_000, count))
                }
                store.mset(values)

    return fill


def _workers(servers: Servers, options: Options) -> Iterator[Point]:
    for count in WORKERS:
        progress(f"{count} workers")
        with running_backline(servers, routes.SHARED, workers=count) as backline:
            target = session_target(backline, f"ada{count}")
            client.warm_up(target)
            yield count, client.measure(target, options.seconds, 64).per_second
