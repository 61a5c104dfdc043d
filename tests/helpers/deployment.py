"""A deployment of real processes with a fault proxy on every connection."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import sqlalchemy as sa

from tests.conftest import SETTINGS
from tests.helpers import secret_scanner
from tests.helpers.fault_proxy import Upstream
from tests.helpers.processes import ApiServer, AppProcess, Environment, MariaDb, RedisServer, Scheduler
from tests.helpers.sandbox_client import REDIRECT_URI, SandboxClient
from tests.helpers.servers import GUNICORN, ROOT, _directory, eventually, migrate

T = TypeVar("T")
# All servers share a redirect URI, so a person may return to another one.
DEPLOYMENT_SETTINGS = {**SETTINGS, "SPOTIFY_REDIRECT_URI": REDIRECT_URI, "LOG_LEVEL": "INFO"}


class Deployment:
    """MariaDB, Redis, and a sandbox, with the API servers and schedulers that use them.

    `start` starts the latter. Each has its own proxies, such as `servers[0].database`.
    """

    def __init__(
        self, database: MariaDb, redis: RedisServer, sandbox: SandboxClient, home: Path, **settings: str
    ) -> None:
        self.database = database
        self.redis = redis
        self.sandbox = sandbox
        self.servers: list[ApiServer] = []
        self.schedulers: list[Scheduler] = []
        self._home = home
        self._settings = {**DEPLOYMENT_SETTINGS, **settings}
        self._pool = ThreadPoolExecutor(48, thread_name_prefix="client")
        # `@test` marks statements of the tests. They must not wait long for a lock.
        session = {"init_command": "SET @test = 1, innodb_lock_wait_timeout = 3", "read_timeout": 20}
        self.engine = sa.create_engine(
            database.url,
            poolclass=sa.NullPool,
            isolation_level="READ COMMITTED",
            connect_args={**session, "connect_timeout": 20},
        )
        migrate({**self._settings, "DATABASE_URL": database.url, "REDIS_URL": f"unix://{redis.socket}"})
        self.metadata = sa.MetaData()
        self.metadata.reflect(self.engine)

    @classmethod
    @contextmanager
    def running(cls, sandbox: SandboxClient, **settings: str) -> Iterator[Self]:
        """Start MariaDB and Redis, with a migrated database. Stop all processes at the end."""
        with ExitStack() as stack:
            homes = [stack.enter_context(_directory()) for _ in range(3)]
            database = stack.enter_context(MariaDb(homes[0]))
            redis = stack.enter_context(RedisServer(homes[1]))
            stack.callback(redis.client.close)
            deployment = cls(database, redis, sandbox, homes[2], **settings)
            stack.callback(deployment.stop)
            yield deployment

    @property
    def processes(self) -> list[AppProcess]:
        return [*self.servers, *self.schedulers]

    def start(
        self, root: Path = ROOT, *, servers: int = 2, schedulers: int = 2, gunicorn: str = GUNICORN
    ) -> None:
        """Start API servers and schedulers with the code in `root`, after stopping those that are running.

        `gunicorn` is the path of its configuration.
        """
        self.stop()
        address = urlsplit(self.sandbox.url)
        upstreams: Mapping[str, Upstream] = {
            "database": self.database.socket,
            "redis": self.redis.socket,
            "spotify": (str(address.hostname), int(address.port or 80)),
        }
        environment = Environment(root, self._home, self._settings, upstreams, gunicorn)
        self.servers = [ApiServer(f"server{n}", environment) for n in range(servers)]
        self.schedulers = [Scheduler(f"scheduler{n}", environment) for n in range(schedulers)]
        for process in self.processes:
            secret_scanner.SCANNER.learn_settings(process.settings)
            process.restore()
        for process in self.processes:
            process.wait_until_up()

    def stop(self) -> None:
        """Stop the API servers and schedulers."""
        for process in self.processes:
            process.close()
        self.servers, self.schedulers = [], []

    def restore(self) -> None:
        """Undo all faults, and restart what was killed."""
        self.sandbox.clear_faults()
        for service in (self.database, self.redis):
            service.resume()
            service.start()
        self.redis.client.replicaof("NO", "ONE")
        self.redis.client.config_set("maxmemory", 0)
        for process in self.processes:
            process.restore()
        for server in self.servers:
            server.resume()

    def reset(self) -> None:
        """Undo all faults, pause the schedulers, and delete all data."""
        self.restore()
        for server in self.servers:
            server.wait_until_up()
        eventually(self._delete_rows)
        self.redis.client.flushall()
        self.sandbox.reset()

    def _delete_rows(self) -> bool:
        """Delete all rows. On a busy machine, a paused scheduler's last statement may arrive late."""
        self.pause_schedulers()
        try:
            with self.engine.begin() as connection:
                for table in reversed(self.metadata.sorted_tables):
                    if table.name != "alembic_version":
                        connection.execute(table.delete())
        except sa.exc.OperationalError:
            self.resume_schedulers()
            raise
        return True

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Run a function in the background."""
        return self._pool.submit(function, *arguments)

    def sql(self, statement: str, **values: object) -> list[Any]:
        """Run a statement directly, and not through the app or a proxy. Return the rows."""
        with self.engine.begin() as connection:
            found = connection.execute(sa.text(statement), values)
            return list(found) if found.returns_rows else []

    def rows_are_unlocked(self) -> bool:
        """Return whether no transaction holds a lock on a row.

        This locks the rows, because `innodb_trx` is cached while it is queried more than ten times a second.
        """
        try:
            with self.engine.connect() as connection:
                for table in self.metadata.sorted_tables:
                    connection.execute(sa.text(f"SELECT 1 FROM {table.name} FOR UPDATE NOWAIT"))
        except sa.exc.OperationalError:
            return False
        return True

    def resume_schedulers(self, count: int | None = None) -> None:
        for scheduler in self.schedulers[:count]:
            scheduler.launch()
            scheduler.resume()

    def pause_server(self, server: ApiServer) -> None:
        """Pause a server, but not during a transaction, such as its mailer's, whose locks would remain."""
        eventually(lambda: self._pause_between_transactions(server, during_call=True))

    def pause_schedulers(self) -> None:
        """Pause the schedulers, but not during a transaction, whose locks would remain."""
        for scheduler in self.schedulers:
            scheduler.wait_until_up()
        if not all(scheduler.is_paused for scheduler in self.schedulers):
            eventually(lambda: self._pause_between_transactions(*self.schedulers))

    def _pause_between_transactions(self, *processes: AppProcess, during_call: bool = False) -> bool:
        for process in processes:
            process.pause()
        # Check twice: a statement may have been on its way when its sender was paused.
        if self.rows_are_unlocked() and (during_call or self.sandbox.held() == 0):
            time.sleep(0.03)
            if self.rows_are_unlocked():
                return True
        for process in processes:
            process.resume()
        return False
