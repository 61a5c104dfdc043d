"""script/server as people run it: from a fresh clone, with one command, until Ctrl-C."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from sqlalchemy import make_url

from script import env_file, ports, server
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


def test_taken_port_is_named_with_its_setting(run: Run, environ: Environ) -> None:
    for variable, purpose in (("SPOTIFY_ACCOUNTS_URL", "the sandbox Spotify"), ("REDIS_URL", "Redis")):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            running = run({**environ, variable: f"{environ[variable].split(':')[0]}://127.0.0.1:{port}"})
            assert running.wait() == 1
        assert f"Port {port} on 127.0.0.1, for {purpose}, is taken by " in running.output
        assert f"{variable}" in running.output
        assert running.remaining_processes() == []


def test_invalid_settings_are_listed(run: Run, environ: Environ) -> None:
    running = run({**environ, "PORT": "eighty", "REDIS_URL": "http://127.0.0.1"})
    assert running.wait() == 1
    assert "PORT must be" in running.output
    assert "REDIS_URL must" in running.output
    assert "Traceback" not in running.output


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_unreachable_database_is_named_without_its_password(
    run: Run, environ: Environ, database_url: str
) -> None:
    socket_path = make_url(database_url).query["unix_socket"]
    url = f"mysql+mysqldb://root:hunter2@localhost/nowhere?unix_socket={socket_path}"
    running = run({**environ, "DATABASE_URL": url})
    assert running.wait() == 1
    assert "The database refused the connection" in running.output
    assert "mysql+mysqldb://localhost/nowhere?unix_socket=" in running.output
    assert "hunter2" not in running.output


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_server_runs_on_mysql(run: Run, environ: Environ, database_url: str) -> None:
    running = run({**environ, "DATABASE_URL": database_url}).until_ready()
    register(environ["PORT"]).close()
    assert "Database  mysql+mysqldb://" in running.output
    assert running.end(signal.SIGTERM) == 0


def test_production_settings_are_rejected(run: Run, environ: Environ, checkout: Path) -> None:
    production = {
        "APP_ENV": "production",
        "DATABASE_URL": "sqlite:////tmp/none.sqlite3",
        "SPOTIFY_CLIENT_ID": "0123456789abcdef0123456789abcdef",
        "SPOTIFY_CLIENT_SECRET": "0123456789abcdef0123456789abcdef",
        "SPOTIFY_REDIRECT_URI": "https://example.com/callback",
        "FRONTEND_URL": "https://example.com/",
        "CORS_ORIGINS": "https://example.com",
    }
    elsewhere = {name: value for name, value in environ.items() if not name.startswith("SPOTIFY")}
    running = run({**elsewhere, **production})
    assert running.wait() == 1
    assert "script/server is for development only" in running.output


def test_incomplete_production_settings_are_rejected_first(
    run: Run, environ: Environ, checkout: Path
) -> None:
    running = run({**environ, "APP_ENV": " Production"})
    assert running.wait() == 1
    assert "script/server is for development only" in running.output
    assert "SECRET_KEY" not in running.output
    assert not (checkout / ".env").exists()


def test_empty_app_env_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ENV", "")
    monkeypatch.setenv("FLASK_SKIP_DOTENV", "1")
    assert env_file.read_settings()["APP_ENV"] == "development"


def test_misspelled_app_env_does_not_ask_for_settings_of_production(run: Run, environ: Environ) -> None:
    running = run({**environ, "APP_ENV": "dev"})
    assert running.wait() == 1
    assert "APP_ENV must be 'development' or 'production'." in running.output
    assert "is not set" not in running.output


@pytest.mark.parametrize(
    "content", ["SECRET_KEY=a\n".encode("utf-16"), "NAME=Zo\xeb\n".encode("latin-1"), None]
)
def test_unreadable_dotenv_is_named(
    run: Run, environ: Environ, checkout: Path, content: bytes | None
) -> None:
    if content is None:
        (checkout / ".env").mkdir()
    else:
        (checkout / ".env").write_bytes(content)
    running = run(environ)
    assert running.wait() == 1
    assert ".env cannot be read" in running.output
    assert "Traceback" not in running.output


def test_folder_that_cannot_be_created_is_named(run: Run, environ: Environ, checkout: Path) -> None:
    (checkout / "instance").touch()
    running = run(environ)
    assert running.wait() == 1
    assert "instance: File exists" in running.output
    assert "Traceback" not in running.output


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
