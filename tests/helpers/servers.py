"""The real servers that tests run on, as context managers: Redis, MariaDB, the app under gunicorn, nginx.

Each is killed at the end of its block and, on Linux, when the test process ends.
"""

import itertools
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import redis
import requests
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

from script.supervisor import ends_with_parent
from tests.helpers import secret_scanner

ROOT = Path(__file__).resolve().parents[2]
# Configurations of gunicorn: that of the project it runs in, and one that lets Redis take its time.
GUNICORN, PATIENT_GUNICORN = "deploy/gunicorn.conf.py", str(ROOT / "tests/helpers/patient_gunicorn.py")
T = TypeVar("T")

# How long to wait for what should happen soon. A busy machine may take many times as long as usual.
LONG = 120.0
# Ports that the kernel gives to no connection. Each worker of pytest has its own.
_PORTS = range(12_000, 32_000)
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
_ports = itertools.cycle(_PORTS[_WORKER::10])
for _ in range(random.randrange(2000)):  # another run of the tests starts elsewhere
    next(_ports)


class Unavailable(Exception):
    """A server cannot run here. The message names the missing package."""


def eventually(condition: Callable[[], T], timeout: float = LONG) -> T:
    """Wait until `condition()` is true, and return its result. An exception counts as false.

    The longer it takes, the less often it is checked, because each check takes time from what it waits for.

    Raises:
        AssertionError: It was not true within `timeout` seconds. The cause is the last exception, if any.
    """
    began = time.monotonic()
    while True:
        error: Exception | None = None
        try:
            if result := condition():
                return result
        except Exception as raised:  # noqa: BLE001 - the condition decides what it raises
            error = raised
        elapsed = time.monotonic() - began
        if elapsed > timeout:
            raise AssertionError(f"the condition was not true within {timeout} s") from error
        time.sleep(min(max(0.01, elapsed / 10), 0.05))


def free_port() -> int:
    """Return a TCP port of the loopback interface that stays free until somebody listens on it.

    A port that the kernel chooses could be the next connection's before a server has started.
    """
    while True:
        port = next(_ports)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def patient(client: redis.Redis) -> redis.Redis:
    """Let a client of the product wait for replies as long as a busy machine may need."""
    client.connection_pool.connection_kwargs |= {"socket_timeout": LONG, "socket_connect_timeout": LONG}
    return client


def process_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings with what any process needs, without the rest of the developer's environment."""
    needed = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**needed, "PYTHONUNBUFFERED": "1", **settings}


@contextmanager
def running_redis() -> Iterator[str]:
    """Run a Redis server that stores nothing on disk. Yields its URL."""
    with _directory() as home:
        path = home / "redis.sock"
        with (
            _process(redis_command(home), home / "log") as process,
            redis.Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0)) as client,
        ):
            _until_up(process, client.ping, home / "log")
            yield f"unix://{path}"


def redis_command(home: Path) -> list[str]:
    """Return the command for a Redis that stores nothing on disk and listens on `home / "redis.sock"`."""
    server = find_program("redis-server", "redis-server")
    settings = {"port": "0", "unixsocket": str(home / "redis.sock"), "dir": str(home)}
    persistence = {"save": "", "appendonly": "no"}
    return [
        server,
        *(word for name, value in (settings | persistence).items() for word in (f"--{name}", value)),
    ]


@contextmanager
def running_mariadb() -> Iterator[str]:
    """Run a MariaDB server with an empty database. Yields the database's URL."""
    with _directory() as home:
        path, log = home / "mariadb.sock", home / "log"
        command = mariadb_command(home)
        url = f"mysql+mysqldb://root@localhost/backline?unix_socket={quote(str(path))}&charset=utf8mb4"
        with _process(command, log) as process:
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            _until_up(process, lambda: _connects(engine), log)
            yield url


def _connects(engine: sa.Engine) -> bool:
    engine.connect().close()
    return True


def mysql_url(port: int, user: str = "root") -> str:
    """Return the database's URL at a loopback port, such as a proxy's."""
    return f"mysql+mysqldb://{user}@127.0.0.1:{port}/backline?charset=utf8mb4"


def socket_of(database_url: str) -> str:
    """Return the path of the Unix socket in the URL of `running_mariadb`."""
    [path] = parse_qs(urlsplit(database_url).query)["unix_socket"]
    return path


def mariadb_command(home: Path) -> list[str]:
    """Create a data directory in `home`. Returns the command that serves it on `home / "mariadb.sock"`."""
    server = find_program("mariadbd", "mariadb-server")
    install = find_program("mariadb-install-db", "mariadb-server")
    try:
        import MySQLdb  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            "the Python package mysqlclient is not installed: script/bootstrap --mysql"
        ) from error
    # If they share a directory, two installations at once delete each other's temporary tables.
    (home / "temporary").mkdir()
    directories = [f"--datadir={home / 'data'}", f"--tmpdir={home / 'temporary'}"]
    common = ["--no-defaults", *directories, "--innodb-log-file-size=8M"]
    if os.geteuid() == 0:
        common.append("--user=root")  # required to run as root
    with (home / "log").open("w") as output:
        subprocess.run(
            [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True,
            stdout=output,
            stderr=output,
        )
    (home / "init.sql").write_text("CREATE DATABASE IF NOT EXISTS backline CHARACTER SET utf8mb4;\n")
    settings = [
        f"--socket={home / 'mariadb.sock'}",
        f"--init-file={home / 'init.sql'}",
        "--skip-networking",
        # The data is temporary, so durability does not matter.
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
        "--innodb-doublewrite=0",
        "--innodb-buffer-pool-size=32M",
    ]
    return [server, *common, *settings]


def migrate(settings: Mapping[str, str], root: Path = ROOT) -> None:
    """Run `flask db upgrade` in another process, so that it does not change the tests' logging."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi:app", "db", "upgrade"],
        cwd=root,
        env=process_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"flask db upgrade failed:\n{done.stdout}{done.stderr}"


MIGRATED = "BACKLINE_TESTS_MIGRATED_SQLITE"
"""The environment variable with a migrated SQLite file, which copies of the project use."""


def migrate_sqlite(file: Path, settings: Mapping[str, str]) -> str:
    """Create a migrated SQLite database, and return its URL."""
    url = f"sqlite:///{file}"
    if migrated := os.environ.get(MIGRATED):
        with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(file)) as copy:
            source.backup(copy)  # a plain copy would lack the pages that are in another file
    else:
        migrate({**settings, "DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"})
    return url


class EmptyDatabase:
    """Deletes all rows between tests, and keeps the schema."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        metadata = sa.MetaData()
        metadata.reflect(self._engine)
        self._tables = [
            table for table in reversed(metadata.sorted_tables) if table.name != "alembic_version"
        ]

    def __call__(self) -> None:
        with self._engine.begin() as connection:
            for table in self._tables:
                connection.execute(table.delete())

    def close(self) -> None:
        self._engine.dispose()


class Server:
    """The app under gunicorn."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process = process
        self._log = log
        self.url = url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """The server's output so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def processes(self) -> list[int]:
        """The process ids of the arbiter and the workers."""
        return [self._process.pid, *self.workers]

    def kill_worker(self) -> int:
        """Kill a worker with SIGKILL, as the kernel does when memory runs out. Returns its process id."""
        pid = self.workers[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def signal(self, number: int) -> None:
        """Send a signal to the arbiter."""
        self._process.send_signal(number)

    def wait(self, timeout: float = LONG) -> int:
        """Wait until the server has ended. Returns its exit status."""
        return self._process.wait(timeout)


@contextmanager
def running_server(
    settings: Mapping[str, str], *, workers: int = 2, threads: int = 8, root: Path = ROOT
) -> Iterator[Server]:
    """Run `gunicorn -c deploy/gunicorn.conf.py wsgi:app` on a free port.

    If it is the tests' own Redis that it uses, and no proxy, it waits for that as long as necessary.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {
        "PORT": str(port),
        "WEB_CONCURRENCY": str(workers),
        "THREADS": str(threads),
        "SPOTIFY_REDIRECT_URI": f"{url}/api/spotify/authorize",
    }
    is_own_redis = settings.get("REDIS_URL", "").startswith("unix:")
    configuration = PATIENT_GUNICORN if is_own_redis else GUNICORN
    command = [sys.executable, "-m", "gunicorn", "-c", configuration, "wsgi:app"]
    with _directory() as home, requests.Session() as http:
        http.trust_env = False
        # gunicorn is killed and cannot delete its temporary files.
        environment = process_environment({**own, "TMPDIR": str(home), **settings})
        log = home / "log"
        with _process(command, log, env=environment, cwd=root) as process:
            _until_up(process, lambda: http.get(f"{url}/readyz", timeout=20).status_code == 200, log)
            yield Server(process, url, log)


@contextmanager
def running_program(
    command: list[str], is_up: Callable[[], object], *, env: Mapping[str, str], cwd: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Run another server, which is up when `is_up()` is true."""
    with _directory() as home, _process(command, home / "log", env=env, cwd=cwd) as process:
        _until_up(process, is_up, home / "log")
        yield process


class Nginx:
    """nginx with deploy/nginx.conf, which serves https for `HOST` on a loopback port."""

    HOST = "api.example.com"

    def __init__(self, port: int, home: Path) -> None:
        self.port = port
        self.certificate = home / "certificate.pem"
        self.maintenance = home / "maintenance"
        self._logs = [home / "access.log", home / "error.log", home / "log"]

    @property
    def lines(self) -> list[str]:
        """The lines of the access log."""
        return self._logs[0].read_text(encoding="utf-8", errors="replace").splitlines()

    @property
    def log(self) -> str:
        """Everything that nginx has written so far, to any file."""
        return "\n".join(
            path.read_text(encoding="utf-8", errors="replace") for path in self._logs if path.exists()
        )


@contextmanager
def running_nginx(upstream: int, changes: Mapping[str, str] | None = None) -> Iterator[Nginx]:
    """Run nginx in front of port `upstream`, with deploy/nginx.conf as an operator would edit it.

    `changes` maps further texts in the file to their replacements.
    """
    nginx, openssl = find_program("nginx", "nginx"), find_program("openssl", "openssl")
    port = free_port()
    with _directory() as home:
        api = Nginx(port, home)
        (home / "nginx.conf").write_text(_nginx_conf(home, port, upstream, changes or {}))
        make_certificate(openssl, home, f"DNS:{Nginx.HOST}")
        command = [nginx, "-p", str(home), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
        try:
            with _process(command, home / "log") as process:
                _until_up(process, lambda: _accepts(port), home / "log")
                yield api
        finally:
            secret_scanner.record(api.log, "nginx's logs")


def _accepts(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port)).close()
    return True


def _nginx_conf(home: Path, port: int, upstream: int, changes: Mapping[str, str]) -> str:
    """Return deploy/nginx.conf with paths and ports that any user may use, also in parallel."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {home}/temporary/{kind};\n" for kind in kinds)
    (home / "temporary").mkdir()
    ours = {
        "user www-data;": "user root;" if os.geteuid() == 0 else "",
        "worker_processes auto;": "worker_processes 1;",
        "/run/nginx.pid": f"{home}/pid",
        "/run/backline-maintenance": f"{home}/maintenance",
        "/var/log/nginx/error.log": f"{home}/error.log",
        "/var/log/nginx/backline.log": f"{home}/access.log",
        "http {": f"http {{\n{temporary}",
        "server 127.0.0.1:5000;": f"server 127.0.0.1:{upstream};",
        "https://app.example.com": "http://127.0.0.1:5173",
        "listen [::]:443 ": "# ",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        f"/etc/letsencrypt/live/{Nginx.HOST}/fullchain.pem": f"{home}/certificate.pem",
        f"/etc/letsencrypt/live/{Nginx.HOST}/privkey.pem": f"{home}/key.pem",
    }
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in {**changes, **ours}.items():
        assert old in text, f"{old!r} is no longer in deploy/nginx.conf"
        text = text.replace(old, new)
    return text


def make_certificate(openssl: str, home: Path, alternative: str) -> None:
    """Write `key.pem` and a self-signed `certificate.pem` for a name such as `DNS:example.com`."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=a test's", "-addext", f"subjectAltName={alternative}", "-days", "2"]
    files = ["-keyout", str(home / "key.pem"), "-out", str(home / "certificate.pem")]
    subprocess.run([openssl, "req", "-x509", *curve, *name, *files], check=True, capture_output=True)


def find_program(program: str, package: str) -> str:
    # Debian keeps servers in /usr/sbin, which only root has on PATH.
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable(f"{program} is not installed: apt-get install {package}")
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    """Create a directory whose path is short enough for Unix sockets (104 characters on macOS)."""
    with tempfile.TemporaryDirectory(prefix="backline-", dir="/tmp") as path:
        yield Path(path)


@contextmanager
def _process(
    command: list[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with its output in a file. It is killed at the end, with its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            preexec_fn=ends_with_parent(),  # noqa: PLW1509 - one call to the kernel, no lock, no memory
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        secret_scanner.record(log.read_bytes(), f"the log of {' '.join(command)}")


def _until_up(process: subprocess.Popen[bytes], is_up: Callable[[], object], log: Path) -> None:
    """Wait until a server is up. If it ends, fail immediately, with its log."""

    def up_or_ended() -> bool:
        return process.poll() is not None or bool(is_up())

    try:
        eventually(up_or_ended)
    finally:
        ended = process.poll() is not None
    if ended:
        raise AssertionError(
            f"{process.args!r} ended with {process.returncode}:\n{log.read_text(errors='replace')}"
        )
