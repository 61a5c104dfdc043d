"""Runs everything that Backline is made of in development, and ends it again. Run by script/server."""

import asyncio
import base64
import http.client
import logging
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import URL, NullPool, create_engine, make_url
from sqlalchemy.exc import OperationalError

from config import ROOT, Config, ConfigError, read_environment
from script import demo, ports
from script.demo import Demo
from script.supervisor import ProgramFailed, Programs, Stopped, say
from settings.urls import is_loopback

REDIS_DATA = Path("instance/redis")
START_LIMIT_S = 60.0
POLL_S = 0.05

DOTENV = """\
# Written by script/server. Every other setting, with its meaning, is in .env.example.
APP_ENV=development
LOG_FORMAT=console

# Fresh for this checkout. Changing them signs everybody out and makes the stored Spotify tokens unreadable.
SECRET_KEY={secret_key}
TOKEN_ENCRYPTION_KEYS={token_key}

# Where script/server starts Redis, unless one answers there already.
REDIS_URL=redis://127.0.0.1:5002/0

# Until these are set, a sandbox stands in for Spotify. See .env.example for where to get them.
#SPOTIFY_CLIENT_ID=
#SPOTIFY_CLIENT_SECRET=
"""


START_OVER = "To start over, move .env away: script/server then writes a new one."


class CannotStartError(Exception):
    """Something on this machine is in the way. The message says what to do."""


def main() -> None:
    """Run until Ctrl-C (exit 0), or until something fails (exit 1)."""
    os.chdir(ROOT)
    # Until there is something to stop, Ctrl-C just ends this process. See script/start.py.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        config = prepare()
        hush_asyncio()
        try:
            asyncio.run(serve(config))
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all has ended, and asyncio has let go of it
    except (Stopped, KeyboardInterrupt):  # the latter from asyncio, after all has ended
        say("Everything has stopped.")
    except (CannotStartError, ProgramFailed) as error:
        sys.exit(f"\n{error}")


def hush_asyncio() -> None:
    """Let asyncio not complain of a program that was being started when Ctrl-C came.

    Its loop is closed by then, and what it had of that program goes without one. The program itself is
    ended, by the terminal and by `Programs`.
    """
    unraisable = sys.unraisablehook

    def hook(seen: Any) -> None:
        if str(seen.exc_value) != "Event loop is closed":
            unraisable(seen)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: "that handles pid" not in str(record.msg))


def prepare() -> Config:
    """Write what is missing in the checkout, read the settings, and see that nothing is in the way.

    Raises:
        CannotStartError: something is.
    """
    refuse_production(read_settings())
    try:
        write_dotenv(ROOT / ".env")
        REDIS_DATA.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotStartError(
            f"{error.filename}: {error.strerror}. script/server has to write there."
        ) from error
    config = read_config()
    check_ports(config)
    check_database(config.database_url)
    return config


def write_dotenv(path: Path) -> None:
    """Write a `.env` with fresh secrets that only its owner can read, unless there is one."""
    text = DOTENV.format(
        secret_key=secrets.token_urlsafe(32),
        token_key=base64.b64encode(secrets.token_bytes(32)).decode(),
    )
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text, encoding="utf-8")
        say("==> Wrote .env with fresh secrets.")


def read_settings() -> dict[str, str]:
    """Read the environment over .env, as the programs will.

    Raises:
        CannotStartError: .env cannot be read.
    """
    try:
        environ = read_environment()
    except ConfigError as error:
        raise CannotStartError(f"{error}\n{START_OVER}") from error
    # `flask` takes an empty one for development too.
    return environ if environ.get("APP_ENV", "").strip() else environ | {"APP_ENV": "development"}


def refuse_production(environ: Mapping[str, str]) -> None:
    """Raise CannotStartError where the settings are production's, however incomplete they are."""
    if environ["APP_ENV"].strip().lower() == "production":
        raise CannotStartError(
            "APP_ENV is production: script/server is for development only. In production, run\n"
            "  gunicorn -c deploy/gunicorn.conf.py wsgi:app"
        )


def read_config() -> Config:
    """Check the settings.

    Raises:
        CannotStartError: they are not complete, or do not fit.
    """
    try:
        return Config.from_env(read_settings())
    except ConfigError as error:
        raise CannotStartError(
            f"The settings in .env (or in the environment) cannot be used:\n{error}\n{START_OVER}"
        ) from error


def check_ports(config: Config) -> None:
    """See that the API's and the sandbox's ports are free. Redis comes later: one that answers is welcome.

    Raises:
        CannotStartError: one is taken, with who has it and which setting moves ours.
    """
    remedy = "set another PORT in .env"
    if sys.platform == "darwin" and config.port == 5000:
        remedy += ", or switch off AirPlay Receiver (System Settings, General, AirDrop & Handoff)"
    require_free("127.0.0.1", config.port, "the API", remedy)
    if starts_sandbox(config):
        host, port = address(config.spotify_accounts_url)
        other = f"http://127.0.0.1:{port + 10}"
        remedy = f"set SPOTIFY_ACCOUNTS_URL={other} and SPOTIFY_API_URL={other}/v1 in .env"
        require_free(host, port, "the sandbox Spotify", remedy)


def require_free(host: str, port: int, purpose: str, remedy: str) -> None:
    """Raise CannotStartError unless the port can be had."""
    if ports.is_free(host, port):
        return
    who = ports.holder(port)
    raise CannotStartError(
        f"Port {port} on {host}, for {purpose}, is taken{f' by {who}' if who else ''}.\n"
        f"End that program (is script/server running already?), or {remedy}; then run script/server again."
    )


def check_database(url: str) -> None:
    """See that a database server lets us in; an SQLite file is made when it is needed.

    Raises:
        CannotStartError: it does not, with its reason.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 3})
    try:
        engine.connect().close()
    except OperationalError as error:
        raise CannotStartError(
            f"The database does not let us in: {error.orig}\n"
            f"DATABASE_URL is {shown_database(url)}. Start that server, create that database\n"
            "(CREATE DATABASE name CHARACTER SET utf8mb4), or take DATABASE_URL out of .env:\n"
            "the data then goes into an SQLite file."
        ) from error


def shown_database(url: str) -> str:
    """Where DATABASE_URL leads, without the rest of it: drivers take passwords in many places."""
    full = make_url(url)
    query = {name: value for name, value in full.query.items() if name == "unix_socket"}
    return URL.create(
        full.drivername, host=full.host, port=full.port, database=full.database, query=query
    ).render_as_string()


def starts_sandbox(config: Config) -> bool:
    """Whether Spotify is to be stood in for, at an address that this machine can serve."""
    return config.uses_sandbox and is_loopback(urlsplit(config.spotify_accounts_url).hostname)


def address(url: str) -> tuple[str, int]:
    """The host, as a literal address, and the port that a URL with a loopback host leads to."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    default = {"redis": 6379, "https": 443}.get(parts.scheme, 80)
    return "127.0.0.1" if host == "localhost" else host, parts.port or default


async def serve(config: Config) -> None:
    """Start everything, say what to open, and wait for the end.

    Raises:
        CannotStartError: something did not come up.
        ProgramsEnd: why everything has ended.
    """
    async with Programs() as programs:
        store, app = await programs.unless_ended(start(programs, config))
        say(welcome(config, store, app))
        await programs.until_ended()


async def start(programs: Programs, config: Config) -> tuple[str, Demo | None]:
    """Start the programs, and wait until they serve. Returns what the Redis in use is, and the demo app."""
    app = asyncio.create_task(demo.prepare(programs, read_settings(), config))
    store, *_ = await asyncio.gather(
        start_redis(programs, config),
        start_sandbox(programs, config),
        start_scheduler(programs, app),
        start_api(programs, config, app),
        start_app(programs, app),
    )
    await answers(lambda: is_ready(config.port), "The API", "It runs, but is not ready; see its lines above.")
    return store, await app


async def start_scheduler(programs: Programs, app: asyncio.Task[Demo | None]) -> None:
    """Bring the database up to date, then start the scheduler, which looks into it at once."""
    await programs.complete("migrate", *flask("db", "upgrade"), env=environment())
    await programs.start("scheduler", *flask("scheduler"), env=environment(await app))


async def start_api(programs: Programs, config: Config, app: asyncio.Task[Demo | None]) -> None:
    """Start the API. It needs the others when it is asked something, not before: it starts beside them."""
    # The debugger would let anybody who can open the page run Python here; reloading is all that is wanted.
    command = flask("run", "--host", "127.0.0.1", "--port", str(config.port), "--reload", "--no-debugger")
    await programs.start("api", *command, env=environment(await app))


async def start_app(programs: Programs, app: asyncio.Task[Demo | None]) -> None:
    """Serve the demo app, if there is one."""
    if (built := await app) is not None:
        await demo.serve(programs, built)


async def start_redis(programs: Programs, config: Config) -> str:
    """Start Redis where REDIS_URL points, unless one answers there already. Returns what it is."""
    shown = redis_address(config.redis_url)
    if await asyncio.to_thread(redis_answers, config.redis_url):
        return f"Redis at {shown}, which was running already"
    parts = urlsplit(config.redis_url)
    if parts.scheme != "redis" or parts.password or not is_loopback(parts.hostname):
        raise CannotStartError(
            f"No Redis answers at {shown}. Start it, or set REDIS_URL=redis://127.0.0.1:5002/0 in .env:\n"
            "script/server then starts one there."
        )
    host, port = address(config.redis_url)
    require_free(host, port, "Redis", "set another port in REDIS_URL in .env")
    server = shutil.which("redis-server")
    if server:
        command = [server, *redis_settings(host, port)]
        kind = f"redis-server at {shown}, data in {REDIS_DATA}"
    else:
        command = [sys.executable, "-m", "script.embedded_redis", host, str(port)]
        kind = f"embedded substitute at {shown} (no redis-server on PATH): a restart signs everybody out"
    await programs.start("redis", *command, env=environment(), serves_others=True)
    await answers(lambda: redis_answers(config.redis_url), "Redis", "See its lines above.")
    return kind


def redis_settings(host: str, port: int) -> list[str]:
    """Append-only persistence, so that sessions outlive a restart; all files in a folder that this makes."""
    REDIS_DATA.mkdir(mode=0o700, exist_ok=True)
    settings = {
        "--bind": host,
        "--port": str(port),
        "--dir": str(REDIS_DATA),
        "--appendonly": "yes",
        "--save": "",
        "--loglevel": "warning",
    }
    return [word for pair in settings.items() for word in pair]


def redis_answers(url: str) -> bool:
    """Whether a Redis answers PING there.

    Raises:
        CannotStartError: one does, but turns us away.
    """
    with redis.Redis.from_url(
        url, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0)
    ) as client:
        try:
            return bool(client.ping())
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise CannotStartError(
                f"The Redis at {redis_address(url)} turns us away ({error}). Check REDIS_URL in .env."
            ) from error
        except (redis.RedisError, OSError):
            return False


def redis_address(url: str) -> str:
    """Where REDIS_URL leads, without the rest of it: redis-py takes passwords in the query too."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    # What is no number may be the end of a password with a slash in it.
    database = parts.path if re.fullmatch(r"/\d+", parts.path) else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{database}"


async def start_sandbox(programs: Programs, config: Config) -> None:
    """Start the sandbox Spotify where the configuration expects it."""
    if not starts_sandbox(config):
        return
    host, port = address(config.spotify_accounts_url)
    options = {
        "--host": host,
        "--port": str(port),
        "--client-id": config.spotify_client_id,
        "--client-secret": config.spotify_client_secret,
        "--redirect-uri": config.spotify_redirect_uri,
        # The database keeps its refresh tokens from one start to the next; so must who honours them.
        "--keep": "instance/sandbox.json",
    }
    words = [word for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "sandbox", *words]
    await programs.start("sandbox", *command, env=environment(), serves_others=True)
    await answers(lambda: ports.accepts(host, port), "The sandbox Spotify", "See its lines above.")


def flask(*arguments: str) -> list[str]:
    """A `flask` command. Not .venv/bin/flask: that names its Python by path, and a project may be moved."""
    return [sys.executable, "-m", "flask", *arguments]


def environment(app: Demo | None = None) -> dict[str, str]:
    """What the programs inherit. They read .env themselves, as they do everywhere.

    Where the demo app is served, Spotify and the mails lead people to it, unless .env says where else.
    """
    is_set = read_settings().get("FRONTEND_URL", "").strip()
    frontend = {"FRONTEND_URL": app.url} if app and not is_set else {}
    return {**os.environ, **frontend, "FLASK_APP": "wsgi:app", "PYTHONUNBUFFERED": "1"}


async def answers(asked: Callable[[], bool], who: str, otherwise: str) -> None:
    """Wait until a program answers.

    Raises:
        CannotStartError: it did not within START_LIMIT_S.
    """
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not await asyncio.to_thread(asked):  # noqa: ASYNC110 - another process's state has no event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise CannotStartError(f"{who} did not answer within {START_LIMIT_S:.0f} s. {otherwise}") from None


def is_ready(port: int) -> bool:
    """Whether the API says that it and what it needs are there. Goes past any HTTP proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def welcome(config: Config, store: str, app: Demo | None) -> str:
    """What to open, and where everything is."""
    api = f"http://127.0.0.1:{config.port}"
    docs = f"{api}/api/docs"
    to_open = (
        f"{app.url}  (the demo app, from {demo.APP}; FRONTEND_URL leads there)\n  API       {docs}"
        if app
        else docs
    )
    spotify = (
        f"{config.spotify_accounts_url}/  (the sandbox stands in until SPOTIFY_CLIENT_ID is set in .env)"
        if starts_sandbox(config)
        else f"{config.spotify_accounts_url}  (client id {config.spotify_client_id})"
    )
    return f"""
Backline is running. Ctrl-C stops everything.

  Open      {to_open}
  Try       curl -i {api}/api/session
  Spotify   {spotify}
  Database  {shown_database(config.database_url)}
  Redis     {store}
  Settings  .env
"""


if __name__ == "__main__":
    main()
