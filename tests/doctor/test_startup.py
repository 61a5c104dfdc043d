"""What keeps a process from starting. Every process lists all of it, once, and says what to do."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.doctor.startup import require_usable_servers
from app.infra.database import db
from app.infra.probes import schema_revisions
from app.services import services
from tests.conftest import MakeApp
from tests.helpers.flows import connect, register
from tests.helpers.processes import RedisServer
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, process_environment
from tests.test_config import PRODUCTION

pytestmark = pytest.mark.sqlite_only

WEAK_KEY = base64.b64encode(bytes(32)).decode()
# Each setting, and what is said about it.
WRONG = {
    "FLASK_DEBUG": ("1", "FLASK_DEBUG is on, "),
    "SECRET_KEY": ("short", "SECRET_KEY is shorter than 16 characters. Make one: "),
    "TOKEN_ENCRYPTION_KEYS": (WEAK_KEY, "TOKEN_ENCRYPTION_KEYS has a key with a pattern, "),
    "JWT_SIGNING_KEYS": (WEAK_KEY, "JWT_SIGNING_KEYS has a key with a pattern, "),
    "SPOTIFY_CLIENT_ID": ("5a4db0c0ffee4b0cac1e5a4db0c0ffee", "SPOTIFY_CLIENT_ID is the sandbox's. Use "),
    "SPOTIFY_CLIENT_SECRET": (
        "sandbox-secret-not-for-production",
        "SPOTIFY_CLIENT_SECRET is the sandbox'",
    ),
    "SPOTIFY_REDIRECT_URI": ("http://api.example.com/x", "SPOTIFY_REDIRECT_URI must be https, or http with "),
    "FRONTEND_URL": ("http://app.example.com", "FRONTEND_URL is plain http, "),
    "CORS_ORIGINS": ("*", "CORS_ORIGINS has '*', which is not an exact origin "),
    "TRUSTED_HOSTS": ("", "TRUSTED_HOSTS is not set. List "),
    "SESSION_COOKIE_SAMESITE": ("Loose", "SESSION_COOKIE_SAMESITE must be 'Lax', 'Strict' or 'None'."),
    "REDIS_URL": ("http://cache", "REDIS_URL must look like redis://host:6379/0"),
    "DATABASE_URL": ("mysql+mysqldb://u:password@db/backline", "DATABASE_URL has a password from examples "),
    "PYTHONPATH": ("{home}", "DATABASE_URL needs mysqlclient, which is not installed. Run: script/bootstrap"),
}
GUNICORN = ["gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", "127.0.0.1:0", "wsgi:app"]
SCHEDULER = ["flask", "--app", "wsgi:app", "scheduler"]
RUN = ["flask", "--app", "wsgi:app", "run", "--port", "0"]
on_every_process = pytest.mark.parametrize(
    "command", [GUNICORN, SCHEDULER, RUN], ids=["gunicorn", "scheduler", "run"]
)


# With standard error closed. What the process says goes to standard output then.
WITHOUT_LOG = ["sh", "-c", 'exec "$@" 2>&-', "sh"]


def start(command: list[str], env: dict[str, str], prefix: Sequence[str] = ()) -> list[str]:
    """Run a command that cannot start. Returns what it says, without gunicorn's own log."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", *command],
        cwd=ROOT,
        env=process_environment({"FLASK_SKIP_DOTENV": "1", "APP_ENV": "production", **env}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    [title, *lines] = [
        line for line in (done.stdout if prefix else done.stderr).splitlines() if not line.startswith("{")
    ]
    assert title == "Backline cannot start. Correct this:"
    return lines


@pytest.mark.requirement("M5")
@pytest.mark.processes
@on_every_process
def test_all_wrong_settings_are_listed_once(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "MySQLdb.py").write_text("raise ModuleNotFoundError(name='MySQLdb')")
    env = {name: value.format(home=tmp_path) for name, (value, _) in WRONG.items()}
    expected = [words for _, words in WRONG.values()]
    if command is GUNICORN:
        env |= {"TMPDIR": str(tmp_path / "missing")}
        expected.append("TMPDIR: workers cannot keep their metrics in ")

    prefix = WITHOUT_LOG if command is SCHEDULER else []
    if prefix:
        expected.append("Standard error cannot be written to, ")

    lines = start(command, {**PRODUCTION, "JWT_AUDIENCES": "x", **env}, prefix)

    assert sorted(words for line in lines for words in expected if line.startswith(words)) == sorted(expected)
    assert len(lines) == len(expected), lines


@pytest.fixture(scope="module")
def cluster_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a node of a Redis Cluster at an address of its own, where every port is free. Yields its URL."""
    server, pid = RedisServer(tmp_path_factory.mktemp("cluster")), os.getpid()
    host = f"127.9.{pid >> 8 & 255}.{pid & 255}"
    server._command += ["--port", "7000", "--bind", host, "--cluster-enabled", "yes"]
    with server:
        yield f"redis://{host}:7000/0"
        server.client.close()


@pytest.mark.requirement("M5")
@pytest.mark.processes
@on_every_process
def test_servers_that_cannot_be_used_are_listed_once(
    command: list[str], cluster_node: str, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite3", "ALLOW_INSECURE": "sqlite"}

    lines = start(command, {**PRODUCTION, **env, "REDIS_URL": cluster_node})

    assert [line.partition(". ")[2] for line in lines] == [
        "Run: flask db upgrade",
        "Use redis+cluster://host:6379,host:6379.",
    ]


@pytest.fixture
def production(make_app: MakeApp, env: dict[str, str]) -> Callable[..., Flask]:
    ours = {name: value for name, value in PRODUCTION.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    ours["TOKEN_ENCRYPTION_KEYS"] = base64.b64encode(os.urandom(32)).decode()
    return lambda **settings: make_app(
        **{**ours, "APP_ENV": "production", "ALLOW_INSECURE": "sqlite,redis", **settings}
    )


@pytest.mark.requirement("M5")
def test_only_an_older_schema_prevents_the_start(
    production: Callable[..., Flask], capsys: pytest.CaptureFixture[str]
) -> None:
    app = production()
    head, known = schema_revisions()

    for revision, starts in ((head, True), (min(known), False), ("of-a-later-release", True)):
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
        try:
            assert says(app, capsys).endswith("Run: flask db upgrade\n") is not starts
        finally:
            with app.app_context(), db.engine.begin() as connection:
                connection.execute(sa.text("UPDATE alembic_version SET version_num = :to"), {"to": head})


def test_servers_that_are_down_do_not_prevent_the_start(
    production: Callable[..., Flask], capsys: pytest.CaptureFixture[str]
) -> None:
    away = {"DATABASE_URL": "mysql+mysqldb://root@127.0.0.1:1/backline", "REDIS_URL": "redis://127.0.0.1:1"}

    assert says(production(**away), capsys) == ""


def test_missing_key_prevents_the_start(
    client: FlaskClient,
    sandbox: SandboxClient,
    production: Callable[..., Flask],
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(client)
    connect(client, sandbox)

    said = says(production(), capsys)

    assert "TOKEN_ENCRYPTION_KEYS lacks keys that stored tokens are encrypted with: " in said
    assert "(1 rows)" in said


def says(app: Flask, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a server says before it exits, or nothing if it starts."""
    with app.app_context():
        ours = services()
    with suppress(SystemExit):
        require_usable_servers(app, ours)
    return capsys.readouterr().err
