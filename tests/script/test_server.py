"""script/server as people run it: from a fresh clone, with one command, until Ctrl-C."""

import fcntl
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import requests
from sqlalchemy import make_url

import config
from config import Config
from script import env_file, ports, server
from script.env_file import CannotStartError
from script.supervisor import Programs
from tests.conftest import SETTINGS
from tests.helpers.servers import LONG, eventually, free_port
from tests.script.running import Environ, Run

pytestmark = pytest.mark.timeout(1800)  # several starts of everything


def register(port: str) -> requests.Session:
    http = requests.Session()
    http.trust_env = False
    http.headers["X-Requested-With"] = "test"
    body = {"username": "ada", "email": "ada@example.com", "password": "a long sentence is best"}
    assert http.post(f"http://127.0.0.1:{port}/api/register", json=body, timeout=LONG).status_code == 201
    return http


@pytest.mark.usefixtures("redis_url")  # the embedded substitute does not persist data
def test_one_command_runs_a_fresh_clone_until_ctrl_c_and_again(
    run: Run, environ: Environ, checkout: Path
) -> None:
    running = run(environ).until_ready()
    api = f"http://127.0.0.1:{environ['PORT']}"
    with register(environ["PORT"]) as http:
        assert http.get(f"{api}/api/session", timeout=LONG).json()["authenticated"]
        assert http.get(f"{environ['SPOTIFY_ACCOUNTS_URL']}/", timeout=LONG).status_code == 200
        authorize = http.get(f"{api}/api/spotify/authorize", timeout=LONG).json()["authorize_url"]
        assert http.get(authorize, timeout=LONG).status_code == 200, "the sandbox must know this redirect URI"
        assert f"{api}/api/docs" in running.output
        assert f"curl -i {api}/api/session" in running.output
        assert (checkout / ".env").stat().st_mode & 0o777 == 0o600
        secrets = (checkout / ".env").read_bytes()

        assert len(running.remaining_processes()) >= 5
        assert running.end() == 0
        assert running.remaining_processes() == []
        assert "Everything has stopped." in running.output
        assert "Traceback" not in running.output

        again = run(environ).until_ready()
        session = http.get(f"{api}/api/session", timeout=LONG).json()
        assert session["user"]["username"] == "ada"
        assert (checkout / ".env").read_bytes() == secrets
        assert again.end(signal.SIGHUP) == 0
    assert again.remaining_processes() == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_redis_and_node_are_optional_and_a_killed_server_leaves_nothing_running(
    run: Run, environ: Environ, without: Callable[..., str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"  # the usual port of the demo app may be taken
    running = run({**environ, "PATH": without("redis-server", "node", "npm"), "FRONTEND_URL": url})
    running.until_ready()
    register(environ["PORT"]).close()
    assert "embedded substitute" in running.output
    assert "The demo app is not served: it needs Node 20.19 or newer, with npm, on PATH." in running.output
    assert f"Open      http://127.0.0.1:{environ['PORT']}/api/docs" in running.output
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: running.remaining_processes() == [])


def test_second_server_names_the_taken_port_and_lost_redis_ends_the_first_one(
    run: Run, environ: Environ
) -> None:
    first = run(environ).until_ready()
    second = run(environ)
    assert second.wait() == 1
    assert f"Port {environ['PORT']} on 127.0.0.1, for the API, is taken by python" in second.output
    assert re.search(r"pid \d+", second.output)
    assert "PORT in .env" in second.output
    assert first.process.poll() is None

    # The end of one program ends the others.
    found = re.search(r"pid (\d+)", ports.by_holder(int(environ["REDIS_URL"].split(":")[2].split("/")[0])))
    assert found
    os.kill(int(found[1]), signal.SIGKILL)
    assert first.wait() == 1
    assert "redis was ended by SIGKILL" in first.output
    assert first.remaining_processes() == []


def test_second_server_says_that_the_first_one_is_starting(
    run: Run, environ: Environ, checkout: Path
) -> None:
    with (checkout / "script/start_lock.py").open() as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = run(environ)
        assert second.wait() == 1

    assert second.output.rstrip().endswith("script/server is already starting in this folder.")
    assert not (checkout / ".env").exists()


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_server_runs_on_mysql(run: Run, environ: Environ, database_url: str) -> None:
    running = run({**environ, "DATABASE_URL": database_url}).until_ready()
    register(environ["PORT"]).close()
    assert "Database  mysql+mysqldb://" in running.output
    assert running.end(signal.SIGTERM) == 0


@pytest.fixture
def reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: Environ) -> Callable[..., str]:
    """Return why script/server does not start in the folder `tmp_path` with these settings."""
    monkeypatch.chdir(tmp_path)
    for module in (config, server):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def prepare(**settings: str) -> str:
        with (
            patch.dict(os.environ, {**environ, **settings}, clear=True),
            pytest.raises(CannotStartError) as error,
        ):
            server.prepare()
        return str(error.value)

    return prepare


def test_taken_port_is_named_with_its_setting(reason: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = reason(SPOTIFY_ACCOUNTS_URL=f"http://127.0.0.1:{port}")
        assert f"Port {port} on 127.0.0.1, for the sandbox Spotify, is taken by " in message
        assert "set SPOTIFY_ACCOUNTS_URL=" in message
        settings = Config.from_env({**SETTINGS, "REDIS_URL": f"redis://127.0.0.1:{port}/0"})
        with pytest.raises(CannotStartError, match=f"Port {port} on 127.0.0.1, for Redis, is taken by "):
            server.start_redis(Programs(), settings, {})


def test_port_of_another_program_is_rejected(reason: Callable[..., str], environ: Environ) -> None:
    used = urlsplit(environ["REDIS_URL"]).port
    assert reason(PORT=str(used)) == f"PORT is {used}, which Redis uses. Set another PORT in .env."
    used = urlsplit(environ["SPOTIFY_ACCOUNTS_URL"]).port
    assert f"PORT is {used}, which the sandbox Spotify uses." in reason(PORT=str(used))


def test_invalid_settings_are_listed(reason: Callable[..., str]) -> None:
    message = reason(PORT="eighty", REDIS_URL="http://127.0.0.1")
    assert "PORT must be" in message
    assert "REDIS_URL must" in message


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_unreachable_database_is_named_without_its_password(
    reason: Callable[..., str], database_url: str
) -> None:
    socket_path = make_url(database_url).query["unix_socket"]
    message = reason(DATABASE_URL=f"mysql+mysqldb://root:hunter2@localhost/nowhere?unix_socket={socket_path}")
    assert "The database refused the connection" in message
    assert "mysql+mysqldb://localhost/nowhere?unix_socket=" in message
    assert "hunter2" not in message


def test_production_is_rejected_however_incomplete_its_settings_are(
    reason: Callable[..., str], tmp_path: Path
) -> None:
    message = reason(APP_ENV=" Production")
    assert "script/server is for development only" in message
    assert "SECRET_KEY" not in message
    assert not (tmp_path / ".env").exists()


def test_empty_app_env_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV", "")
    monkeypatch.setenv("FLASK_SKIP_DOTENV", "1")
    assert env_file.read_settings()["APP_ENV"] == "development"


def test_misspelled_app_env_does_not_ask_for_settings_of_production(reason: Callable[..., str]) -> None:
    message = reason(APP_ENV="dev")
    assert "APP_ENV must be 'development' or 'production'." in message
    assert "is not set" not in message


@pytest.mark.parametrize(
    "content", ["SECRET_KEY=a\n".encode("utf-16"), "NAME=Zo\xeb\n".encode("latin-1"), None]
)
def test_unreadable_dotenv_is_named(
    reason: Callable[..., str], tmp_path: Path, content: bytes | None
) -> None:
    if content is None:
        (tmp_path / ".env").mkdir()
    else:
        (tmp_path / ".env").write_bytes(content)
    assert ".env cannot be read" in reason()


def test_folder_that_cannot_be_created_is_named(reason: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "instance").touch()
    assert "instance: File exists" in reason()


def test_ctrl_c_during_startup_ends_quietly(run: Run, environ: Environ) -> None:
    for hundredths in (5, 25, 45, 100, 180):
        running = run(environ)
        time.sleep(hundredths / 100)
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
        assert running.wait() in (0, 130, -signal.SIGINT), (hundredths, running.output)
        assert "Traceback" not in running.output, (hundredths, running.output)
        assert "exception" not in running.output, (hundredths, running.output)
        eventually(lambda running=running: running.remaining_processes() == [])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6380/0?password=SECRET", "redis://h:6380/0"),
        ("redis://SECRET:SECRET@h/1", "redis://h/1"),
        ("rediss://SECRET@[::1]:6379?ssl_cert_reqs=none", "rediss://[::1]:6379"),
        ("redis://me:12/SECRET@h/0", "redis://me:12"),
        ("redis://h/0#SECRET", "redis://h/0"),
        ("unix://me:SECRET@/run/redis.sock?db=1&password=SECRET", "unix:///run/redis.sock"),
    ],
)
def test_redis_is_shown_without_secrets(url: str, shown: str) -> None:
    assert server.redis_address(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+mysqldb://me:SECRET@h:3307/d?charset=utf8mb4&passwd=SECRET", "mysql+mysqldb://h:3307/d"),
        ("mysql+mysqldb://h/d?unix_socket=/s&password=SECRET", "mysql+mysqldb://h/d?unix_socket=%2Fs"),
        ("sqlite:////tmp/a.sqlite3?key=SECRET", "sqlite:////tmp/a.sqlite3"),
    ],
)
def test_database_is_shown_without_secrets(url: str, shown: str) -> None:
    assert server.shown_database(url) == shown


def test_free_port_is_distinguished_from_a_taken_one() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free("127.0.0.1", port)
        assert ports.accepts("127.0.0.1", port)
        assert ports.by_holder(port).endswith(f"pid {os.getpid()}")
    assert ports.is_free("127.0.0.1", port)
    assert not ports.accepts("127.0.0.1", port)
    assert ports.by_holder(port) == ""
