"""Three hosts: their files, as in deploy/cluster, their services, and what can be done to them."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import requests
import sqlalchemy as sa

from tests.cluster import states
from tests.cluster.namespaces import HOME, PREFIX, SPOTIFY, Cable, run
from tests.helpers import secret_scanner
from tests.helpers.servers import ROOT, eventually, find_program

SPOTIFY_PORT = 5001
CLIENT_ID = "7e57ab1ec0de4b0cac1e7e57ab1ec0de"
REDIRECT_URI = "https://api.example.com/api/spotify/authorize"
START_SECONDS = 300
DISK_SIZE = "600m"
# These words in the files of deploy/cluster are passwords.
PASSWORDS = (
    "DATABASE_PASSWORD",
    "MIGRATE_PASSWORD",
    "REDIS_PASSWORD",
    "SERVERS_PASSWORD",
    "FAILOVER_PASSWORD",
)
REFRESH_RATE = 100
# The scheduler with a pass each second, because a run cannot wait for half a minute.
_SCHEDULER = (
    "import flask.cli; from app.spotify.tokens import scheduler; scheduler.TICK_SECONDS = 1; flask.cli.main()"
)
# As in Debian's galera_recovery: a node that was killed finds out what it has, and gets only what it lacks.
_MARIADB = """
position=$(mariadbd --defaults-file=$0 --wsrep-recover --log-error= 2>&1 |
    sed -n 's/.*WSREP: Recovered position: *//p')
new=; if [ -e $1/bootstrap ]; then rm $1/bootstrap; new=--wsrep-new-cluster; fi
exec mariadbd --defaults-file=$0 $new ${position:+--wsrep-start-position=$position}
"""


@dataclass(frozen=True)
class Setup:
    """What all hosts have in common. `changes` maps texts in the files of deploy/cluster to others."""

    passwords: Mapping[str, str]
    redis: str
    changes: Mapping[str, str]


class Host:
    """A host with its own disk, network, and processes."""

    def __init__(self, number: int, setup: Setup) -> None:
        self.number = number
        self.name = f"host {number}"
        self.cable = Cable(number)
        self.address = self.cable.address
        self.disk = HOME / f"host{number}"
        self.disk.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(self.disk))
        for folder in ("log", "mysql", "redis", "redis-7001", "redis-7002", "scratch", "sentinel"):
            (self.disk / folder).mkdir()
        for folder in ("", "mysql", "scratch"):
            shutil.chown(self.disk / folder, "mysql")  # rsync runs as nobody if MariaDB runs as root
        (self.disk / "current").symlink_to(ROOT)
        self._setup = setup
        self._process: subprocess.Popen[str] | None = None
        self._write_files()
        admin = sa.URL.create(
            "mysql+mysqldb",
            "admin",
            setup.passwords["DATABASE_PASSWORD"],
            self.address,
            3306,
            "backline",
            {"charset": "utf8mb4"},
        )
        session = {"init_command": "SET @test = 1, innodb_lock_wait_timeout = 3", "read_timeout": 20}
        self.engine = sa.create_engine(
            admin,
            poolclass=sa.NullPool,
            pool_reset_on_return=None,
            connect_args={**session, "connect_timeout": 5},
            hide_parameters=True,
        )
        self.http = requests.Session()
        self.http.trust_env = False

    # Files.

    def template(self, name: str) -> str:
        """Return a file of deploy/cluster as this host's operator would edit it."""
        text = (ROOT / "deploy" / "cluster" / name).read_text()
        own = {
            "THIS_HOST": self.address,
            **self._setup.passwords,
            "/usr/local/sbin/galera-restart": f"{self.disk}/galera-restart",
            "/run/mysqld/mysqld.pid": f"{self.disk}/mysql.pid",
        }
        for old, new in {**self._setup.changes, **own}.items():
            text = text.replace(old, new)
        return text

    def _write_files(self) -> None:
        galera = self.template("galera.cnf") + self._paths_of_mariadb()
        (self.disk / "galera.cnf").write_text(galera)
        shutil.copy(ROOT / "deploy" / "cluster" / "galera-restart", self.disk)  # MariaDB may not read ours
        for port in states.CLUSTER_PORTS:
            text = self.template("redis-cluster.conf").replace("/var/lib/redis/", f"{self.disk}/redis-")
            (self.disk / f"redis-{port}.conf").write_text(text.replace("PORT", str(port)))
        redis = self.template("redis.conf").replace("/var/lib/redis", f"{self.disk}/redis")
        if self.number != 1:
            redis += f"replicaof {PREFIX}.1 6379\n"
        (self.disk / "redis.conf").write_text(redis)
        sentinel = self.template("sentinel.conf").replace("/var/lib/redis", f"{self.disk}/sentinel")
        (self.disk / "sentinel.conf").write_text(sentinel)

    def _paths_of_mariadb(self) -> str:
        """Return what Debian's own files would set, or should be smaller here."""
        return f"""
tmpdir = {self.disk}/scratch
datadir = {self.disk}/mysql
socket = {self.disk}/mysql.sock
pid_file = {self.disk}/mysql.pid
user = mysql
default_time_zone = +00:00
innodb_log_file_size = 8M
innodb_buffer_pool_size = 32M
max_connections = 500
"""

    def environment(self, *, for_migrations: bool = False) -> dict[str, str]:
        """Return the settings of Backline on this host, or those for migrations."""
        needed = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        text = self.template("backline.env")
        if self._setup.redis == "cluster":
            text = text.replace("# REDIS_URL=", "REDIS_URL=")  # the last one counts
        if for_migrations:
            text += self.template("migrate.env")
        lines = (line.partition("=") for line in text.splitlines())
        own = {name: value for name, equals, value in lines if equals and not name.startswith("#")}
        own |= re.findall(r'^Environment="(\w+)=(.*)"$', self.template("backline-web.conf"), re.MULTILINE)
        return {**needed, **settings(), **own, "TMPDIR": f"{self.disk}/scratch"}

    # Processes.

    def boot(self) -> None:
        """Start the host with all of its services, like power."""
        services = self._services()
        command = ["ip", "netns", "exec", self.cable.namespace, find_program("unshare", "util-linux")]
        command += ["--pid", "--mount", "--fork", "--kill-child", "--mount-proc", sys.executable]
        command += ["-m", "tests.cluster.host", json.dumps(services)]
        with (self.disk / "log" / "host").open("a") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True
            )

    def _services(self) -> dict[str, dict[str, object]]:
        environment = self.environment()
        plain = {name: environment[name] for name in ("PATH", "TMPDIR")}
        redis = find_program("redis-server", "redis-server")
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "wsgi:app"]
        commands = {
            "mariadb": (["sh", "-c", _MARIADB, f"{self.disk}/galera.cnf", str(self.disk)], plain),
            **{name: ([redis, *arguments], plain) for name, arguments in self._redis_services().items()},
            "web": (gunicorn, environment),
            "scheduler": ([sys.executable, "-c", _SCHEDULER, "--app", "wsgi:app", "scheduler"], environment),
        }
        if self._setup.redis == "cluster":
            password = dict(
                re.findall(r"^(\w+)=(.*)$", self.template("redis-cluster-failover.env"), re.MULTILINE)
            )
            for port in states.CLUSTER_PORTS:
                commands[f"failover-{port}"] = (self._failover_command(port), {**plain, **password})
        return {
            name: {
                "argv": command,
                "env": env,
                "cwd": f"{self.disk}/current",
                "log": f"{self.disk}/log/{name}",
            }
            for name, (command, env) in commands.items()
        }

    def _redis_services(self) -> dict[str, list[str]]:
        if self._setup.redis == "cluster":
            return {f"redis-{port}": [f"{self.disk}/redis-{port}.conf"] for port in states.CLUSTER_PORTS}
        return {
            "redis": [f"{self.disk}/redis.conf"],
            "sentinel": [f"{self.disk}/sentinel.conf", "--sentinel"],
        }

    def _failover_command(self, port: int) -> list[str]:
        """Return what the unit in deploy/cluster starts."""
        unit = self.template("redis-cluster-failover@.service").replace("%i", str(port))
        [command] = re.findall(r"^ExecStart=/usr/local/sbin/(.*)$", unit, re.MULTILINE)
        program, *arguments = command.split()
        return [str(ROOT / "deploy" / "cluster" / program), *arguments]

    def order(self, verb: str, service: str) -> None:
        """Do as `systemctl VERB SERVICE` on the host: start, stop, or restart."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {service}\n")
        self._process.stdin.flush()

    def install(self, release: Path) -> None:
        """Replace the release, and restart what runs it. Returns when the new processes run."""
        link = self.disk / "next"
        link.symlink_to(release)
        link.rename(self.disk / "current")
        started = {name: self._starts(name) for name in ("web", "scheduler")}
        for name in started:
            self.order("restart", name)
        eventually(lambda: all(self._starts(name) > count for name, count in started.items()), START_SECONDS)

    def stop_backline(self) -> None:
        """Stop the API and the scheduler, and wait until they have ended."""
        for service in ("scheduler", "web"):
            self.order("stop", service)
        eventually(lambda: not any(map(_is_backline, self._pids())), START_SECONDS)

    def _starts(self, service: str) -> int:
        """Return how many times a service was started."""
        text = (self.disk / "log" / service).read_text(errors="replace")
        return text.count("Starting gunicorn" if service == "web" else "scheduler_started")

    def kill(self) -> None:
        """Kill all processes with SIGKILL at once. The kernel continues: it refuses connections."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        for stale in ("mysql.sock", "mysql.sock.lock"):
            (self.disk / stale).unlink(missing_ok=True)

    def pause(self) -> None:
        """Pause all processes with SIGSTOP. The kernel continues: it accepts connections and data."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for _ in range(2):  # also what was forked meanwhile
            for pid in self._pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _pids(self) -> list[int]:
        """Return the processes in the host's namespace, except for its own `ip` and `unshare`."""
        assert self._process is not None
        [init] = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        inside = _pid_namespace(init)
        return [
            int(path.name) for path in Path("/proc").glob("[0-9]*") if _pid_namespace(path.name) == inside
        ]

    # The disk.

    def fill_disk(self) -> None:
        with suppress(OSError), (self.disk / "full").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        with suppress(OSError), (self.disk / "full2").open("ab", buffering=0) as file:
            while True:
                file.write(b"x")

    def keep_disk_full(self, ending: threading.Event) -> None:
        """Fill the disk again and again: what stops there, such as MariaDB, makes room."""
        while not ending.is_set():
            self.fill_disk()
            ending.wait(0.1)

    def empty_disk(self) -> None:
        for name in ("full", "full2"):
            (self.disk / name).unlink(missing_ok=True)

    # State.

    def problem(self) -> str | None:
        """Return what does not work on this host, or None."""
        try:
            password = self._setup.passwords["SERVERS_PASSWORD"]
            return states.problem_of(self.engine, self.address, password, self.http, self._setup.redis)
        except Exception as error:  # noqa: BLE001 - the reason why it does not work
            return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"

    def has_primary(self) -> bool:
        """Return whether a primary Redis is on this host, according to Sentinel or itself."""
        password = self._setup.passwords["SERVERS_PASSWORD"]
        if self._setup.redis == "sentinel":
            return states.redis_primary([self.address], password) == self.address
        return any(states.is_primary(self.address, port, password) for port in states.CLUSTER_PORTS)

    def is_redis_ready_for_failure(self) -> bool:
        """Return whether another host of this kind of Redis may fail.

        In a cluster, no host has two of three primaries. A Sentinel that was paused is idle for 30 seconds.
        """
        if self._setup.redis == "cluster":
            return self.has_primary()
        return not states.is_in_tilt(self.address, self._setup.passwords["SERVERS_PASSWORD"])

    def excessive_rights(self) -> list[str]:
        """Return what strangers, or Backline with its own accounts, may do on this host and should not."""
        url = sa.make_url(self.environment()["DATABASE_URL"]).set(host=self.address)
        password = self._setup.passwords["REDIS_PASSWORD"]
        return [
            *states.excessive_rights_in_database(url),
            *states.excessive_rights_in_redis(self.address, password, self._setup.redis),
        ]

    def logs(self, lines: int = 60) -> str:
        """Return the end of each log."""
        ends = []
        for path in sorted((self.disk / "log").iterdir()):
            text = path.read_text(errors="replace").splitlines()[-lines:]
            ends.append("\n    ".join([f"{self.name}, {path.name}:", *text]))
        return "\n".join(ends)

    def scan_logs(self) -> list[str]:
        """Return the secrets in what Backline has logged on this host."""
        secret_scanner.SCANNER.learn_settings(self.environment())
        for service in ("web", "scheduler"):
            secret_scanner.record(
                (self.disk / "log" / service).read_bytes(), f"the log of {service} on {self.name}"
            )
        return [str(leak) for leak in secret_scanner.SCANNER.scan()]


def settings() -> dict[str, str]:
    """Return the settings that all hosts share, for the whole run."""
    return _SETTINGS


_SETTINGS = {
    "APP_ENV": "production",
    "FLASK_SKIP_DOTENV": "1",
    "PYTHONUNBUFFERED": "1",
    "SECRET_KEY": secrets.token_urlsafe(32),
    "TOKEN_ENCRYPTION_KEYS": secrets.token_hex(32),
    "SPOTIFY_CLIENT_ID": CLIENT_ID,
    "SPOTIFY_CLIENT_SECRET": secrets.token_hex(16),
    "SPOTIFY_REDIRECT_URI": REDIRECT_URI,
    "SPOTIFY_ACCOUNTS_URL": f"http://{SPOTIFY}:{SPOTIFY_PORT}",
    "SPOTIFY_API_URL": f"http://{SPOTIFY}:{SPOTIFY_PORT}/v1",
    "FRONTEND_URL": "https://app.example.com",
    "CORS_ORIGINS": "https://app.example.com",
    "TRUSTED_HOSTS": "api.example.com",
    "PLAYBACK_TOKEN_ENABLED": "true",
    "REFRESH_RATE": str(REFRESH_RATE),
    "WEB_CONCURRENCY": "2",
    "THREADS": "8",
}


def install_database(host: Host) -> None:
    """Make the data of the first node, with the product's database and two users."""
    install = find_program("mariadb-install-db", "mariadb-server")
    options = [f"--defaults-file={host.disk}/galera.cnf", "--wsrep-on=OFF"]
    run(install, *options, "--auth-root-authentication-method=normal", "--skip-test-db", "--user=mysql")
    (host.disk / "bootstrap").touch()


def create_database(host: Host) -> None:
    """Create the database, its accounts, and ours, which may do everything."""
    password = host.engine.url.password
    statements = f"""{host.template("accounts.sql")}
        CREATE USER admin@'{PREFIX}.%' IDENTIFIED BY '{password}';
        GRANT ALL ON *.* TO admin@'{PREFIX}.%';
    """
    client = [find_program("mariadb", "mariadb-client"), f"--socket={host.disk}/mysql.sock", "--user=root"]
    eventually(lambda: run(*client, "--execute", "SELECT 1"), START_SECONDS)
    run(*client, "--execute", statements)


def create_redis_cluster(hosts: Sequence[Host], password: str) -> None:
    """Make one cluster of all processes. redis-cli puts each replica on another host than its primary."""
    client = [find_program("redis-cli", "redis-tools"), "--no-auth-warning", "--user", "servers"]
    client += ["-a", password]
    nodes = [f"{host.address}:{port}" for port in states.CLUSTER_PORTS for host in hosts]
    for node in nodes:
        address, _, port = node.partition(":")
        eventually(lambda: run(*client, "-h", address, "-p", port, "PING"), START_SECONDS)  # noqa: B023
    run(*client, "--cluster", "create", *nodes, "--cluster-replicas", "1", "--cluster-yes")


def _is_backline(pid: int) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"wsgi:app" in command and b"tests.cluster.host" not in command
    return False


def _pid_namespace(pid: str) -> str | None:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    return None


def wait_until_whole(hosts: list[Host], seconds: float = START_SECONDS) -> None:
    """Wait until everything works on all hosts.

    Raises:
        AssertionError: It took too long. The message says what does not work.
    """
    problems: dict[str, str | None] = {}

    def is_whole() -> bool:
        problems.update({host.name: host.problem() for host in hosts})
        return not any(problems.values())

    try:
        eventually(is_whole, timeout=seconds)
    except AssertionError as error:
        raise AssertionError(f"not everything works after {seconds:.0f} s: {problems}") from error
