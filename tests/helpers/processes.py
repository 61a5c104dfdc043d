"""Processes that tests kill, pause, and restart."""

import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis
import requests
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers.fault_proxy import FaultProxy, Upstream
from tests.helpers.servers import (
    LONG,
    _process,
    eventually,
    free_port,
    mariadb_command,
    mysql_url,
    process_environment,
    redis_command,
)

# The scheduler with several passes a second, because a scenario cannot wait for half a minute.
_SCHEDULER = (
    "import flask.cli; from app.spotify.tokens import scheduler; "
    "scheduler.TICK_SECONDS = 0.2; flask.cli.main()"
)


class Program(ABC):
    """A program that can be restarted. Its output is appended to a file."""

    def __init__(self, name: str, command: list[str], log: Path, **options: object) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._options = options
        self._running = ExitStack()
        self._process: object = None
        self._paused: set[int] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def __repr__(self) -> str:
        return self.name

    @property
    def pid(self) -> int:
        return self._process.pid  # type: ignore[attr-defined, no-any-return]

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None  # type: ignore[attr-defined]

    def start(self) -> None:
        """Start the program and wait until it is up. Nothing happens if it is running."""
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        if not self.is_running:
            self._process = self._running.enter_context(_process(self._command, self._log, **self._options))  # type: ignore[arg-type]

    def wait_until_up(self) -> None:
        eventually(self._up_or_ended)
        assert self.is_running, f"{self.name} has ended:\n{self.log}"

    def kill(self) -> None:
        """Kill it with SIGKILL, with its children."""
        self._running.close()
        self._process = None
        self._paused.clear()

    def terminate(self) -> None:
        """Tell it to stop, with SIGTERM."""
        self._process.terminate()  # type: ignore[attr-defined]

    def wait(self) -> int:
        """Wait until it has ended. Returns its status."""
        status: int = self._process.wait(LONG)  # type: ignore[attr-defined]
        return status

    def pause(self) -> None:
        """Pause it with SIGSTOP, if it is running, as on an overloaded or suspended machine."""
        if not self.is_running:
            return
        pid = self.worker_pid
        os.kill(pid, signal.SIGSTOP)
        self._paused.add(pid)

    def resume(self) -> None:
        for pid in self._paused:
            os.kill(pid, signal.SIGCONT)
        self._paused.clear()

    @property
    def is_paused(self) -> bool:
        return bool(self._paused)

    @property
    def is_unavailable(self) -> bool:
        """Whether it is paused or not running."""
        return self.is_paused or not self.is_running

    @property
    def worker_pid(self) -> int:
        """The process that does the work, to be paused or killed."""
        return self.pid

    def _up_or_ended(self) -> bool:
        return not self.is_running or self.is_up()

    @abstractmethod
    def is_up(self) -> bool:
        """Return whether it responds."""


class MariaDb(Program):
    """A MariaDB that loses no committed data when it is killed."""

    def __init__(self, home: Path) -> None:
        # This protects from a killed process, not from a power failure.
        durable = ["--innodb-flush-log-at-trx-commit=1", "--innodb-doublewrite=1"]
        command = [*mariadb_command(home), *durable, "--default-time-zone=+00:00"]
        super().__init__("mariadb", command, home / "log")
        self.socket = home / "mariadb.sock"
        self.url = (
            f"mysql+mysqldb://root@localhost/backline?unix_socket={quote(str(self.socket))}&charset=utf8mb4"
        )
        self._engine = sa.create_engine(self.url, poolclass=sa.NullPool)

    def is_up(self) -> bool:
        self._engine.connect().close()
        return True


class RedisServer(Program):
    def __init__(self, home: Path) -> None:
        super().__init__("redis", redis_command(home), home / "log")
        self.socket = home / "redis.sock"
        self.client = redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))

    def is_up(self) -> bool:
        return bool(self.client.ping())


@dataclass(frozen=True)
class Environment:
    """What the processes of a deployment have in common: code, directory, settings, and other servers."""

    root: Path
    home: Path
    settings: Mapping[str, str]
    upstreams: Mapping[str, Upstream]
    gunicorn: str  # its configuration


class AppProcess(Program):
    """A process of Backline with its own proxies to other servers."""

    def __init__(self, name: str, command: list[str], environment: Environment, **settings: str) -> None:
        self._proxies = ExitStack()
        self.database, self.redis, self.spotify = (
            self._proxies.enter_context(FaultProxy(environment.upstreams[what]))
            for what in ("database", "redis", "spotify")
        )
        spotify = f"http://127.0.0.1:{self.spotify.port}"
        self.settings = {
            **environment.settings,
            **settings,
            "DATABASE_URL": mysql_url(self.database.port),
            "REDIS_URL": f"redis://127.0.0.1:{self.redis.port}/0",
            "SPOTIFY_ACCOUNTS_URL": spotify,
            "SPOTIFY_API_URL": f"{spotify}/v1",
        }
        log, env = environment.home / name, process_environment(self.settings)
        super().__init__(name, command, log, cwd=environment.root, env=env)

    @property
    def proxies(self) -> tuple[FaultProxy, FaultProxy, FaultProxy]:
        return self.database, self.redis, self.spotify

    def close(self) -> None:
        self.kill()
        self._proxies.close()

    def restore(self) -> None:
        """Undo all faults of its connections, and restart it if it was killed."""
        for proxy in self.proxies:
            proxy.restore()
        self.launch()


class ApiServer(AppProcess):
    """gunicorn with one worker, which is the process to pause or kill. The arbiter keeps running."""

    def __init__(self, name: str, environment: Environment) -> None:
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "gunicorn", "-c", environment.gunicorn, "wsgi:app"]
        own = {"PORT": port, "WEB_CONCURRENCY": "1", "THREADS": "8", "TMPDIR": str(environment.home)}
        super().__init__(name, command, environment, **own)

    @property
    def worker_pid(self) -> int:
        """The worker. There is none while it is being replaced."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return int(eventually(children.read_text).split()[0])

    def kill_worker(self) -> None:
        """Kill the worker with SIGKILL. The arbiter starts another one."""
        pid = self.worker_pid
        os.kill(pid, signal.SIGKILL)
        self._paused.discard(pid)
        eventually(lambda: not Path(f"/proc/{pid}").exists())

    def is_up(self) -> bool:
        with requests.Session() as http:
            http.trust_env = False
            return http.get(f"{self.url}/readyz", timeout=20).status_code == 200


class Scheduler(AppProcess):
    def __init__(self, name: str, environment: Environment) -> None:
        command = [sys.executable, "-c", _SCHEDULER, "--app", "wsgi:app", "scheduler"]
        super().__init__(name, command, environment, REFRESH_WORKERS="8")

    def is_up(self) -> bool:
        return "scheduler_started" in self.log
