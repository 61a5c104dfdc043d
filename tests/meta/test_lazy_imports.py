"""What a server does not need at its start is imported later, and this is the list of it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import ROOT
from tests.conftest import SETTINGS
from tests.helpers.servers import process_environment

# Not loaded by `import wsgi`: they cost a server time to start, and memory.
NOT_LOADED = {
    "alembic": "only `flask db` runs migrations",
    "apscheduler": "only `flask scheduler` needs it",
    "app.cli": "commands",
    "app.doctor": "commands",
    "app.imports.commands": "commands",
    "app.user.commands": "commands",
    "flask_migrate": "only `flask db` needs it",
    "jwt": "only with JWT_SIGNING_KEYS",
}

# Every import inside a function, and why it is there.
INSIDE_FUNCTIONS = {
    "app/__init__.py: app.factory": "`config` imports `app.settings`, and so this package",
    "app/factory.py: app.cli": "commands",
    "app/infra/database.py: flask_migrate": "only `flask db` needs it",
    "app/imports/your_spotify.py: bson": "only `flask import your-spotify` needs it",
    "app/imports/your_spotify.py: pymongo": "only `flask import your-spotify` needs it",
    "app/infra/mysql.py: app.infra.mysql_connection": "SQLite works without MySQL's driver",
    "app/settings/rules.py: MySQLdb": "only MySQL needs it",
    "app/settings/start.py: werkzeug": "the arbiter does not need it, unless it cannot start",
    "app/spotify/tokens/scheduler.py: apscheduler": "only `flask scheduler` needs it",
    "app/wiring.py: app.auth.jwt_issuer": "PyJWT is needed only with JWT_SIGNING_KEYS",
    "deploy/gunicorn.conf.py: app.doctor.startup": "the arbiter must not import the app",
    "deploy/gunicorn.conf.py: prometheus_client": "imported after its directory was set",
    "deploy/metrics.py: deploy": "imports prometheus_client, after its directory was set",
    "deploy/worker.py: app.spotify.clients.capacity": "the arbiter must not import the app",
    "deploy/worker.py: app.web.problems": "the arbiter must not import the app",
}

SOURCES = [
    ROOT / "wsgi.py",
    ROOT / "config.py",
    *(ROOT / "app").rglob("*.py"),
    *(ROOT / "deploy").glob("*.py"),
]


def inside_functions(path: Path) -> Iterator[str]:
    """Yield the imports of a file that run when a function is called; of libraries, the package."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [f"app.{alias.name}" for alias in node.names] if module == "app" else [module]
            for name in names:
                package = name if name.startswith("app.") else name.split(".")[0]
                yield f"{path.relative_to(ROOT)}: {package}"


def test_every_import_inside_a_function_is_listed() -> None:
    found = {name for source in SOURCES for name in inside_functions(source)}
    assert found == INSIDE_FUNCTIONS.keys()


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that `import wsgi` loads."""
    script = "import json, sys, wsgi; print(json.dumps(sorted(sys.modules)))"
    env = {**SETTINGS, "DATABASE_URL": "mysql+mysqldb://127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"}
    env |= {"JWT_SIGNING_KEYS": "", "JWT_AUDIENCES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=process_environment(env),
        stdout=subprocess.PIPE,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", NOT_LOADED)
def test_server_starts_without(loaded: set[str], name: str) -> None:
    assert name not in loaded


def test_sqlite_needs_no_mysql_driver(tmp_path: Path) -> None:
    """`script/server` does not install the driver in a fresh clone."""
    script = (
        "import sys; sys.modules['MySQLdb'] = None; "
        "from deploy import preload; preload.import_libraries(); "
        "import wsgi; wsgi.app.app_context().push(); "
        "from app.infra import database; import sqlalchemy as sa; print(database.read(sa.text('SELECT 42')))"
    )
    env = {
        **SETTINGS,
        "DATABASE_URL": f"sqlite:///{tmp_path}/backline.sqlite3",
        "REDIS_URL": "redis://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=process_environment(env),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"42" in done.stdout) == (0, True), done.stderr.decode()
