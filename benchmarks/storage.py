"""What a connection, a refresh, and a session occupy, and what a busy worker holds."""

from pathlib import Path
from typing import Any

import redis

from benchmarks import client, routes
from benchmarks.deployment import Deployment, running_backline, running_servers
from benchmarks.growth import session_target
from benchmarks.processes import WORKERS, memory_mib
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from benchmarks.rows import Database

CLIENTS_OF_MARIADB = "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE()"
ROWS, QUICK_ROWS = 100_000, 10_000
PEOPLE = 20
CLIENTS = 256
SIZE = """
SELECT SUM(data_length + index_length) FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name IN ({})
"""
HISTORY = """
INSERT INTO token_refreshes
    (spotify_user_id, grant_id, generation, attempt_id, outcome, effective, started_at, finished_at)
SELECT seq, MD5(seq), 1, MD5(seq + 0.5), 'refreshed', 1, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) FROM seq_1_to_{}
"""
CONNECTION = "'spotify_users', 'access_tokens'"
REFRESH = "'token_refreshes'"


def run(options: Options) -> Section:
    """Fill the tables, sign people in, and put the server under load."""
    rows = QUICK_ROWS if options.quick else ROWS
    with running_servers() as servers:
        database = Database(servers.database_url)
        with running_backline(servers, routes.SHARED) as backline:
            session = _session_bytes(backline)
            target = session_target(backline)
            client.measure(target, options.seconds, CLIENTS)
            progress(f"{CLIENTS} clients")
            threads = max(_threads(pid) for pid in backline.server.workers)
            memory = max(memory_mib(pid) for pid in backline.server.workers)
            [(clients,)] = database.execute(CLIENTS_OF_MARIADB)
            with redis.Redis.from_url(servers.redis_url) as store:
                redis_clients = len(store.client_list()) - 1  # without our own
        progress(f"{rows:,} connections")
        database.fill_connections(rows)
        connection = _size(database, CONNECTION) / rows
        database.execute(HISTORY.format(rows))
        refresh = _size(database, REFRESH) / rows
    figures = [
        Figure("a connection in MariaDB, with indexes", connection, "bytes"),
        Figure("a refresh in MariaDB, kept for 3 days", refresh, "bytes"),
        Figure("a session in Redis, with its index", session, "bytes"),
        Figure("memory (RSS) of a worker", memory, "MiB"),
        Figure("threads of a worker", threads, ""),
        Figure(f"connections to MariaDB of {WORKERS} workers", int(clients) - 1, ""),
        Figure(f"connections to Redis of {WORKERS} workers", redis_clients, ""),
    ]
    notes = [
        f"{rows:,} rows; {PEOPLE} people who registered and connected Spotify.",
        f"The last four: after GET /api/session from {CLIENTS} clients; {WORKERS} workers with 8 threads.",
    ]
    return Section("Storage", figures, notes)


def _session_bytes(backline: Deployment) -> float:
    """Register people, and return what a session needs in Redis."""
    with redis.Redis.from_url(backline.servers.redis_url) as store:
        for number in range(PEOPLE):
            person = str(backline.sandbox.seed(1)[0]["id"])
            backline.connect(person, f"person{number}")
        keys: list[Any] = [*store.scan_iter("session:*"), *store.scan_iter("sessions-of:*")]
        return sum(int(store.memory_usage(key) or 0) for key in keys) / PEOPLE


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _size(database: Database, tables: str) -> float:
    database.execute(f"ANALYZE TABLE {tables.replace(chr(39), '')}")
    return float(database.execute(SIZE.format(tables))[0][0])
