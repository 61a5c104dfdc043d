"""Runs everything that Backline consists of, for development. Run by script/server."""

import http.client
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.util import immutabledict

from app.infra import mysql
from app.infra.redis_client import redis_client
from app.settings.database_url import parse_database_url
from app.settings.redis_urls import parse_cluster_url, parse_sentinel_url
from app.settings.urls import is_loopback
from config import ROOT, Config, ConfigError
from script import demo, ports
from script.env_file import START_OVER, CannotStartError, read_settings, write_dotenv
from script.start_lock import lock_start
from script.supervisor import Program, ProgramFailed, Programs, Stopped, say

REDIS_DATA = Path("instance/redis")
START_LIMIT_S = 60.0
FLASK = [sys.executable, "-m", "flask"]  # .venv/bin/flask would break when the project is moved

# Arguments: host and port. Keeps nothing.
EMBEDDED_REDIS = """\
import sys, fakeredis
address = sys.argv[1], int(sys.argv[2])
fakeredis.TcpFakeServer.allow_reuse_address = True  # otherwise, it cannot restart for a minute
fakeredis.TcpFakeServer(address, server_type="redis").serve_forever()
"""


def main() -> None:
    """Run until Ctrl-C (exit 0), or until something fails (exit 1)."""
    os.chdir(ROOT)
    try:
        starting, config = lock_start(), prepare()
        with Programs() as programs:
            store, app = start(programs, config)
            starting.close()  # from now on, a second one finds the ports taken
            say(welcome(config, store, app))
            programs.wait_until(lambda: False, "", float("inf"))
    except Stopped:
        say("Everything has stopped.")
    except (CannotStartError, ProgramFailed) as error:
        sys.exit(f"\n{error}")


def prepare() -> Config:
    """Write .env if it is missing, read the settings, and check the ports and the database."""
    if read_settings()["APP_ENV"].strip().lower() == "production":  # however incomplete the settings are
        raise CannotStartError(
            "APP_ENV is production: script/server is for development only. In production, run\n"
            "  gunicorn -c deploy/gunicorn.conf.py wsgi:app"
        )
    try:
        write_dotenv(ROOT / ".env")
        for folder in (REDIS_DATA.parent, REDIS_DATA):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotStartError(f"{error.filename}: {error.strerror}. script/server writes there.") from error
    try:
        config = Config.from_env(read_settings())
    except ConfigError as error:
        raise CannotStartError(
            f"The settings in .env (or in the environment) cannot be used:\n{error}\n{START_OVER}"
        ) from error
    check_ports(config)
    check_database(config.database_url)
    return config


def check_ports(config: Config) -> None:
    """Raise CannotStartError unless the ports of the API and the sandbox differ from others and are free."""
    for purpose, url in (("Redis", config.redis_url), ("the sandbox Spotify", config.spotify_accounts_url)):
        if urlsplit(url).netloc.rpartition("@")[2] == f"127.0.0.1:{config.port}":
            raise CannotStartError(f"PORT is {config.port}, which {purpose} uses. Set another PORT in .env.")
    remedy = "set another PORT in .env"
    if sys.platform == "darwin" and config.port == 5000:
        remedy += ", or turn off AirPlay Receiver (System Settings, General, AirDrop & Handoff)"
    require_free("127.0.0.1", config.port, "the API", remedy)
    if starts_sandbox(config):
        host, port = address(config.spotify_accounts_url)
        other = f"http://127.0.0.1:{port + 10}"
        remedy = f"set SPOTIFY_ACCOUNTS_URL={other} and SPOTIFY_API_URL={other}/v1 in .env"
        require_free(host, port, "the sandbox Spotify", remedy)


def require_free(host: str, port: int, purpose: str, remedy: str) -> None:
    """Raise CannotStartError unless the port is free."""
    if not ports.is_free(host, port):
        raise CannotStartError(
            f"Port {port} on {host}, for {purpose}, is taken{ports.by_holder(port)}.\n"
            f"End that program (is script/server already running?), or {remedy}.\n"
            "Then run script/server again."
        )


def check_database(url: str) -> None:
    """Raise CannotStartError if a database server refuses the connection. SQLite needs no server."""
    parsed = parse_database_url(url)
    if parsed.url.get_backend_name() == "sqlite":
        return
    engine = create_engine(parsed.url, poolclass=NullPool)
    mysql.use_hosts(engine, parsed.hosts)
    try:
        engine.connect().close()
    except OperationalError as error:
        raise CannotStartError(
            f"The database refused the connection: {error.orig}\n"
            f"DATABASE_URL is {shown_database(url)}. Start that server, create that database\n"
            "(CREATE DATABASE name CHARACTER SET utf8mb4), or remove DATABASE_URL from .env:\n"
            "data then goes into an SQLite file."
        ) from error


def shown_database(url: str) -> str:
    """Return DATABASE_URL without secrets: drivers accept passwords in many places."""
    full = parse_database_url(url).url
    query = {name: value for name, value in full.query.items() if name == "unix_socket"}
    return full._replace(username=None, password=None, query=immutabledict(query)).render_as_string()


def starts_sandbox(config: Config) -> bool:
    """Return whether to start the sandbox: it is configured, and its address is on this machine."""
    return config.uses_sandbox and is_loopback(urlsplit(config.spotify_accounts_url).hostname)


def address(url: str) -> tuple[str, int]:
    """Return the host (as an IP address) and the port of a loopback URL."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    default = {"redis": 6379, "https": 443}.get(parts.scheme, 80)
    return "127.0.0.1" if host == "localhost" else host, parts.port or default


def start(programs: Programs, config: Config) -> tuple[str, str | None]:
    """Start the programs and wait until they are ready. Returns a description of Redis, and the demo app."""
    env = environment(config)
    migration = programs.start("migrate", *FLASK, "db", "upgrade", env=env, role="task")
    store = start_redis(programs, config, env)
    if starts_sandbox(config):
        start_sandbox(programs, config, env)
    app = demo.find_url(read_settings(), config)
    programs.complete(migration)
    api = start_api(programs, config, app)
    if app and not demo.is_installed(demo.APP):
        wait_for_api(programs, config)
        say(f"==> The API is running: http://127.0.0.1:{config.port}/api/docs. The demo app follows.")
    if app and not demo.prepare(programs, config):
        app = None
        programs.end(api)  # it would redirect browsers to the app
        start_api(programs, config, app)
    programs.start("scheduler", *FLASK, "scheduler", env=environment(config, app))
    wait_for_api(programs, config)
    if app:
        demo.serve(programs, app)
    return store, app


def start_api(programs: Programs, config: Config, app: str | None) -> Program:
    """Start the API, for the demo app if it is served."""
    # Without the debugger, which would let anyone who can open the page run code here.
    options = ["--host", "127.0.0.1", "--port", str(config.port), "--reload", "--no-debugger"]
    return programs.start("api", *FLASK, "run", *options, env=environment(config, app))


def wait_for_api(programs: Programs, config: Config) -> None:
    """Wait until the API and what it needs are ready."""
    programs.wait_until(lambda: is_ready(config.port), "api", START_LIMIT_S)


def start_redis(programs: Programs, config: Config, env: Mapping[str, str]) -> str:
    """Start Redis at REDIS_URL, unless one is running there. Returns a description."""
    shown = redis_address(config.redis_url)
    if is_redis_up(config.redis_url):
        return f"Redis at {shown}, which was already running"
    parts = urlsplit(config.redis_url)
    if parts.scheme != "redis" or parts.password or not is_loopback(parts.hostname):
        raise CannotStartError(
            f"There is no Redis at {shown}. Start it, or set REDIS_URL=redis://127.0.0.1:5002/0 in .env:\n"
            "script/server then starts one."
        )
    host, port = address(config.redis_url)
    require_free(host, port, "Redis", "set another port in REDIS_URL in .env")
    if server := shutil.which("redis-server"):
        # Append-only persistence, so that sessions survive a restart.
        files = ["--dir", str(REDIS_DATA), "--appendonly", "yes", "--save", "", "--loglevel", "warning"]
        command = [server, "--bind", host, "--port", str(port), *files]
        description = f"redis-server at {shown}, data in {REDIS_DATA}"
    else:
        command = [sys.executable, "-c", EMBEDDED_REDIS, host, str(port)]
        description = (
            f"embedded substitute at {shown} (no redis-server on PATH): a restart signs everyone out"
        )
    programs.start("redis", *command, env=env, role="server")
    programs.wait_until(lambda: is_redis_up(config.redis_url), "redis", START_LIMIT_S)
    return description


def is_redis_up(url: str) -> bool:
    """Return whether Redis responds. Raise CannotStartError if it rejects the credentials."""
    options: dict[str, Any] = {
        "socket_connect_timeout": 1,
        "socket_timeout": 1,
        "retry": Retry(NoBackoff(), 0),
    }
    has_several = parse_sentinel_url(url) or parse_cluster_url(url)
    with redis_client(url) if has_several else redis.Redis.from_url(url, **options) as client:
        try:
            return bool(client.ping())
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise CannotStartError(
                f"Redis at {redis_address(url)} rejects us ({error}). Check REDIS_URL in .env."
            ) from error
        except (redis.RedisError, OSError):
            return False


def redis_address(url: str) -> str:
    """Return REDIS_URL without secrets: redis-py accepts passwords in the query too."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    # Anything but a number may be the end of a password with a slash in it.
    database = parts.path if re.fullmatch(r"/\d+", parts.path) else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{database}"


def start_sandbox(programs: Programs, config: Config, env: Mapping[str, str]) -> None:
    """Start the sandbox Spotify at the configured address."""
    host, port = address(config.spotify_accounts_url)
    client = ["--client-id", config.spotify_client_id, "--client-secret", config.spotify_client_secret]
    options = ["--host", host, "--port", str(port), *client, "--redirect-uri", config.spotify_redirect_uri]
    # The database keeps refresh tokens between runs, so the sandbox must too.
    command = [sys.executable, "-m", "sandbox", *options, "--keep", "instance/sandbox.json"]
    programs.start("sandbox", *command, env=env, role="server")
    programs.wait_until(lambda: ports.accepts(host, port), "sandbox", START_LIMIT_S)


def environment(config: Config, app: str | None = None) -> dict[str, str]:
    """Return the environment of the programs, which read .env themselves.

    Unless they are set, FRONTEND_URL leads to the demo app if it is served, and with the sandbox, people may
    use Spotify applications of their own, which its dashboard creates.
    """
    defaults = {"FRONTEND_URL": app} if app else {}
    if starts_sandbox(config):
        defaults["SPOTIFY_APPS"] = "both"
    settings = read_settings()
    missing = {name: value for name, value in defaults.items() if not settings.get(name, "").strip()}
    return os.environ | missing | {"FLASK_APP": "wsgi:app", "PYTHONUNBUFFERED": "1"}


def is_ready(port: int) -> bool:
    """Return whether the API and what it needs are ready. Bypasses any HTTP proxy."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def welcome(config: Config, store: str, app: str | None) -> str:
    """Return what to open, and where everything is."""
    api = f"http://127.0.0.1:{config.port}"
    to_open = f"{app}  (the demo app, {demo.APP})\n  API       " if app else ""
    spotify = (
        f"{config.spotify_accounts_url}/  (the sandbox, until SPOTIFY_CLIENT_ID is set in .env)"
        if starts_sandbox(config)
        else f"{config.spotify_accounts_url}  (client id {config.spotify_client_id})"
    )
    return f"""
Backline is running. Ctrl-C stops everything.

  Open      {to_open}{api}/api/docs
  Try       curl -i {api}/api/session
  Spotify   {spotify}
  Database  {shown_database(config.database_url)}
  Redis     {store}
  Settings  .env
"""


if __name__ == "__main__":
    main()
