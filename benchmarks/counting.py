"""What it costs to count: connections and refreshes for metrics, and failures for the breaker."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from app.factory import create_app
from app.infra import database as product
from app.spotify.tokens import breaker_queries
from app.spotify.tokens.breaker_rules import RULES, Reason
from app.spotify.tokens.metrics import count_connections
from app.spotify.tokens.refresh_history import RefreshHistory
from benchmarks.deployment import running_servers
from benchmarks.progress import Options, progress
from benchmarks.results import Figure, Section
from benchmarks.rows import Database
from config import Config
from tests.conftest import ANY_PORT_REDIRECT_URI

ROWS, QUICK_ROWS = 1_000_000, 20_000
RULE = RULES[Reason.REVOCATIONS]


def run(options: Options) -> Section:
    """Count a million rows of each table, by the product's own queries."""
    rows = QUICK_ROWS if options.quick else ROWS
    with running_servers() as servers:
        database = Database(servers.database_url)
        for variable in ("buffer_pool_size", "log_file_size"):
            database.execute(f"SET GLOBAL innodb_{variable} = 2 * 1024 * 1024 * 1024")
        progress(f"{rows:,} connections")
        database.fill_connections(rows)
        database.fill_history(rows, RULE.window / 2)
        settings = {**servers.settings, "SPOTIFY_REDIRECT_URI": ANY_PORT_REDIRECT_URI}
        with create_app(Config.from_env(settings)).app_context():
            found = {
                f"{rows:,} connections by state, for metrics": _milliseconds(
                    partial(count_connections, has_application=True)
                ),
                f"{rows:,} refreshes by outcome, for the operator page": _milliseconds(_count_an_hour),
                f"rejections among {rows:,} refreshes, for the breaker": _milliseconds(_look_for_rejections),
            }
    figures = [Figure(name, value, "ms") for name, value in found.items()]
    return Section("Counting", figures, ["The fastest of three."])


def _milliseconds(count: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        count()
        times.append((time.perf_counter() - began) * 1000)
    return min(times)


def _count_an_hour() -> None:
    [counts] = RefreshHistory().read([product.read_db_now() - timedelta(minutes=59)])
    assert counts


def _look_for_rejections() -> None:
    with product.reading() as db:
        now = product.db_now(db)
        assert not breaker_queries.is_met(db, RULE, now - RULE.window, now)
