"""The history of refreshes in the long run: whether pruning keeps up, and what it costs others."""

import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import sqlalchemy as sa

from app.factory import create_app
from app.models import TokenRefresh
from app.models.token_refresh import Outcome
from app.services import services
from app.spotify.tokens.maintenance import KEEP_SUCCESSES_FOR
from benchmarks.deployment import running_servers
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from benchmarks.rows import Database
from config import Config
from tests.conftest import ANY_PORT_REDIRECT_URI

SIZES, QUICK_SIZES = (1_000_000, 8_000_000), (200_000,)
SECONDS, QUICK_SECONDS = 8, 1
# 16 GiB for a million connections with 96 rows each, as docs/sizing.md recommends: half of the table.
BUFFER_POOL_PER_ROW = 16 * 2**30 // 96_000_000
# The history has one more day than is kept.
DAYS = KEEP_SUCCESSES_FOR + timedelta(days=1)
# How many refreshes a scheduler claims at once, and stores at once.
BATCH = 25
BY_DAY = """
ALTER TABLE {table} PARTITION BY RANGE COLUMNS (started_at) (
    PARTITION oldest VALUES LESS THAN ('{day}'), PARTITION others VALUES LESS THAN (MAXVALUE)
)
"""
_history = cast("sa.Table", TokenRefresh.__table__)


def run(options: Options) -> Section:
    """Add to the history, prune it, and do both, for each size of the history."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    figures: list[Figure] = []
    with running_servers() as servers:
        database = Database(servers.database_url)
        settings = {**servers.settings, "SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI}
        app = create_app(Config.from_env(settings))
        with app.app_context():
            prune = services().maintenance.run
            for rows in QUICK_SIZES if options.quick else SIZES:
                database.fill_history(rows, DAYS)
                pool = max(rows * BUFFER_POOL_PER_ROW, 2**25)
                database.execute(f"SET GLOBAL innodb_buffer_pool_size = {pool}")
                figures += _measure(f"{rows:,} rows", servers.database_url, prune, seconds)
        figures += _partitions(database, (QUICK_SIZES if options.quick else SIZES)[-1])
    notes = [
        f"The buffer pool holds about half of the table. {seconds} s for each figure. No fsync.",
        f"Adding: transactions that claim or store {BATCH} refreshes each, in one thread.",
        "Pruning: the scheduler's own maintenance.",
    ]
    return Section("Pruning the history of refreshes", figures, notes)


def _measure(
    name: str, database_url: str, prune: Callable[[threading.Event], dict[str, int]], seconds: float
) -> Iterator[Figure]:
    progress(f"{name}: adding")
    with _adding(database_url) as alone:
        time.sleep(seconds)
    progress(f"{name}: pruning")
    pruned = _prune_for(prune, seconds)
    progress(f"{name}: both")
    with _adding(database_url) as together:
        pruned_together = _prune_for(prune, seconds)
    yield Figure(
        name,
        pruned,
        "pruned /s",
        more={
            "added /s": len(alone) * BATCH / 2 / seconds,
            "p99 of adding": f"{_p99(alone):.0f} ms",
            "both: pruned /s": pruned_together,
            "both: added /s": len(together) * BATCH / 2 / seconds,
            "both: p99 of adding": f"{_p99(together):.0f} ms",
        },
    )


def _prune_for(prune: Callable[[threading.Event], dict[str, int]], seconds: float) -> float:
    """Run the scheduler's maintenance for so long. Returns how many rows it has deleted per second."""
    stopping = threading.Event()
    timer = threading.Timer(seconds, stopping.set)
    timer.start()
    began = time.monotonic()
    counts = prune(stopping)
    elapsed = time.monotonic() - began
    timer.cancel()
    return counts["prune_successes"] / elapsed


@contextmanager
def _adding(database_url: str) -> Iterator[list[float]]:
    """Claim and store refreshes until the block ends. The list gets the milliseconds of each transaction."""
    times: list[float] = []
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(_add, sa.create_engine(database_url), times, stopping)
        try:
            yield times
        finally:
            stopping.set()
            writer.result()


def _add(engine: sa.Engine, times: list[float], stopping: threading.Event) -> None:
    while not stopping.is_set():
        now = datetime.now(UTC)
        ids = [uuid.uuid4().hex for _ in range(BATCH)]
        claims = [
            {
                "spotify_user_id": number,
                "grant_id": uuid.uuid4().hex,
                "generation": 1,
                "attempt_id": attempt_id,
                "started_at": now,
            }
            for number, attempt_id in enumerate(ids)
        ]
        with _timed(times), engine.begin() as connection:
            connection.execute(sa.insert(_history), claims)
        stored = {"outcome": Outcome.REFRESHED, "effective": 1, "finished_at": now}
        with _timed(times), engine.begin() as connection:
            connection.execute(sa.update(_history).where(_history.c.attempt_id.in_(ids)).values(stored))


@contextmanager
def _timed(times: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times.append((time.perf_counter() - began) * 1000)


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[-1]


def _partitions(database: Database, rows: int) -> Iterator[Figure]:
    """Check that the table cannot have partitions by day, and drop one of a copy without unique keys."""
    [(day,)] = database.execute(
        "SELECT MIN(started_at) + INTERVAL 1 DAY FROM token_refreshes WHERE effective = 1"
    )
    with pytest.raises(sa.exc.OperationalError, match="1503"):  # unique keys must include started_at
        database.execute(BY_DAY.format(table="token_refreshes", day=day))
    progress("partitions")
    database.execute("CREATE TABLE history_copy LIKE token_refreshes")
    database.execute(
        "ALTER TABLE history_copy DROP PRIMARY KEY, ADD PRIMARY KEY (id, started_at),"
        " DROP KEY uq_token_refreshes_attempt_id, DROP KEY uq_token_refreshes_effective"
    )
    database.execute(
        sa.text("INSERT INTO history_copy SELECT * FROM token_refreshes LIMIT :rows"), {"rows": rows // 4}
    )
    database.execute(BY_DAY.format(table="history_copy", day=day))
    [(count,)] = database.execute("SELECT COUNT(*) FROM history_copy PARTITION (oldest)")
    began = time.perf_counter()
    database.execute("ALTER TABLE history_copy DROP PARTITION oldest")
    yield Figure(f"drop a partition of {count:,} rows", (time.perf_counter() - began) * 1000, "ms")
