"""/readyz and `flask doctor` report servers that respond, but cannot do what requests need."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from flask import Flask
from flask.testing import FlaskClient

from app.doctor.mysql_server import check_version
from app.doctor.result import Status
from app.infra.database import db
from app.infra.probes import probe_redis, schema_revisions
from app.infra.redis_client import redis_client
from app.infra.redis_keys import KEY_PREFIXES, PERMISSIONS
from app.web import health
from config import ROOT
from tests.conftest import MakeApp
from tests.helpers import time_limits
from tests.helpers.factories import create_connections, refresh_due
from tests.helpers.flows import connect, login, register
from tests.helpers.processes import RedisServer
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import free_port
from tests.system.test_failover import demote, forbid, hide_stale_data, lose_replicas, old_primary
from tests.system.test_failover_mysql import admin, make_restricted_app

pytestmark = pytest.mark.slow

__all__ = ["admin", "make_restricted_app", "old_primary"]  # fixtures

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_mariadb = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


@pytest.fixture(autouse=True)
def _long_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let /readyz wait for slow servers, and report a failure at once."""
    time_limits.lengthen(monkeypatch)
    monkeypatch.setattr(health, "FAILOVER_SECONDS", 0.0)


def check_unusable(app: Flask, advice: str) -> None:
    assert app.test_client().get("/readyz").status_code == 503
    report = app.test_cli_runner().invoke(args=["doctor"])
    assert report.exit_code == 1
    failed = report.output.partition("fail  ")[2]
    assert advice in " ".join(failed.split()), report.output


def check_usable(app: Flask) -> None:
    assert app.test_client().get("/readyz").status_code == 200
    report = app.test_cli_runner().invoke(args=["doctor"])
    assert "fail  " not in report.output


def forbid_scripts(server: redis.Redis) -> None:
    server.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha")  # type: ignore[no-untyped-call]


def forbid_keys(server: redis.Redis) -> None:
    server.execute_command("ACL", "SETUSER", "default", "resetkeys", "~session:*")  # type: ignore[no-untyped-call]


def fill_up(server: redis.Redis) -> None:
    server.config_set("maxmemory", 1)


@on_sqlite
@pytest.mark.parametrize(
    ("break_server", "advice"),
    [
        (demote, "point to the primary"),
        (hide_stale_data, "point to the primary"),
        (lose_replicas, "min-replicas-to-write"),
        (forbid, "ACL SETUSER"),
        (forbid_scripts, "ACL SETUSER"),
        (forbid_keys, "ACL SETUSER"),
        (fill_up, "maxmemory"),
    ],
)
def test_unusable_redis_is_reported(
    make_app: MakeApp, old_primary: RedisServer, break_server: Callable[[redis.Redis], None], advice: str
) -> None:
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}")
    check_usable(app)
    break_server(old_primary.client)
    check_unusable(app, advice)


@on_sqlite
@pytest.mark.requirement("K6")
def test_doctor_names_each_key_that_its_user_may_not_use(make_app: MakeApp, old_primary: RedisServer) -> None:
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}")
    probed = ("session", "sessions-of", "shared")  # by /readyz as well
    missing = [prefix for prefix in KEY_PREFIXES if prefix not in probed]
    keys = ["resetkeys", *(f"~{prefix}:*" for prefix in probed)]
    old_primary.client.execute_command("ACL", "SETUSER", "default", *keys)  # type: ignore[no-untyped-call]

    report = app.test_cli_runner().invoke(args=["doctor"])

    names = ", ".join(f"{prefix}:*" for prefix in missing)
    assert f"fail  Redis: the user of REDIS_URL may not use {names}\n" in report.output
    assert "ACL SETUSER" in report.output


@on_sqlite
def test_redis_that_evicts_sessions_gets_a_warning(make_app: MakeApp, old_primary: RedisServer) -> None:
    old_primary.client.config_set("maxmemory", "100mb")
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}")
    for policy, gets_warning in (("volatile-lru", True), ("noeviction", False)):
        old_primary.client.config_set("maxmemory-policy", policy)
        check_usable(app)
        report = app.test_cli_runner().invoke(args=["doctor"])
        assert (f"maxmemory-policy is {policy}" in report.output) == gets_warning


@on_sqlite
def test_wrong_redis_database_number_is_reported(make_app: MakeApp, old_primary: RedisServer) -> None:
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}?db=99")
    check_unusable(app, "DB index is out of range Use a database in REDIS_URL that exists, such as 0.")


@on_sqlite
@pytest.mark.parametrize(
    ("scheme", "advice"),
    [
        ("redis", "This is a Redis Cluster"),
        ("redis+cluster", "no node of the cluster serves 16384 slots"),
    ],
)
def test_redis_cluster_is_reported(
    make_app: MakeApp, tmp_path_factory: pytest.TempPathFactory, scheme: str, advice: str
) -> None:
    home, port = Path(tmp_path_factory.mktemp("cluster")), free_port()
    server = RedisServer(home)
    server._command += ["--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes"]
    server._command += ["--cluster-port", str(free_port())]
    with server:
        app = make_app(REDIS_URL=f"{scheme}://127.0.0.1:{port}/0")
        check_unusable(app, advice)
        server.client.close()


@on_sqlite
def test_permissions_named_by_the_doctor_are_sufficient(
    make_app: MakeApp, old_primary: RedisServer, sandbox: SandboxClient
) -> None:
    old_primary.client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *PERMISSIONS.split())  # type: ignore[no-untyped-call]
    app = make_app(REDIS_URL=f"unix://app:pw@{old_primary.socket}")
    check_usable(app)
    use_all_features(app, sandbox)


@on_sqlite
def test_probe_uses_every_redis_command_of_the_product(
    make_app: MakeApp, old_primary: RedisServer, sandbox: SandboxClient
) -> None:
    """If this fails, add the command to app/probe.lua, or call it in `probe_redis`."""

    @contextmanager
    def recording() -> Iterator[set[str]]:
        found: set[str] = set()
        old_primary.client.config_resetstat()
        yield found
        found |= {name.removeprefix("cmdstat_") for name in old_primary.client.info("commandstats")}

    with recording() as probed, redis_client(f"unix://{old_primary.socket}") as client:
        probe_redis(client)
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}")
    with recording() as used:
        use_all_features(app, sandbox)
    assert used - probed - {"info", "config|resetstat"} == set()


def use_all_features(app: Flask, sandbox: SandboxClient) -> None:
    """Use every feature that needs Redis."""
    client, other = app.test_client(), app.test_client()
    user = register(client)
    connect(client, sandbox)
    login(other, user["username"])
    login(app.test_client(), "nobody")
    for _ in range(2):
        assert client.get("/api/spotify/v1/me/player").status_code < 300
    assert client.put("/api/spotify/v1/me/player/pause").status_code < 500
    create_connections(app, sandbox, 2)
    assert refresh_due(app).refreshed == 2
    assert len(client.get("/api/user/sessions").json["items"]) == 2
    assert client.delete("/api/user/sessions").status_code == 204
    assert client.delete("/api/spotify").status_code == 204
    assert client.post("/api/logout").status_code == 204


def change_schema(admin: sa.Engine, revision: str) -> None:
    with admin.connect() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :to"), {"to": revision})


def make_read_only(admin: sa.Engine) -> None:
    with admin.connect() as connection:
        connection.execute(sa.text("SET GLOBAL read_only = 1"))


@pytest.mark.parametrize("permission", ["SELECT", "INSERT", "UPDATE", "DELETE"])
@on_mariadb
def test_missing_mysql_permission_is_reported(
    make_restricted_app: MakeApp, admin: sa.Engine, permission: str
) -> None:
    app = make_restricted_app()
    check_usable(app)
    with admin.connect() as connection:
        connection.execute(sa.text(f"REVOKE {permission} ON backline.* FROM app@localhost"))
        connection.execute(sa.text("GRANT SELECT ON backline.alembic_version TO app@localhost"))
    with app.app_context():
        db.engine.dispose()  # a connection keeps the permissions it started with
    check_unusable(app, "GRANT SELECT, INSERT, UPDATE, DELETE")


@on_mariadb
def test_read_only_mysql_is_reported(
    make_app: MakeApp, make_restricted_app: MakeApp, admin: sa.Engine, database_url: str
) -> None:
    make_read_only(admin)
    check_unusable(make_restricted_app(), "the server that accepts writes")
    privileged = make_app(DATABASE_URL=database_url)  # may write to a read-only server
    check_unusable(privileged, "the server that accepts writes")


@on_mariadb
def test_older_schema_is_reported_and_a_newer_one_is_not(
    app: Flask, admin: sa.Engine, client: FlaskClient
) -> None:
    with admin.connect() as connection:
        current = str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())
    try:
        change_schema(admin, "0001")
        check_unusable(app, "flask db upgrade")
        change_schema(admin, "of-tomorrow")  # the old release keeps running during a rollout
        assert client.get("/readyz").status_code == 200
    finally:
        change_schema(admin, current)


@on_mariadb
def test_pools_that_can_exceed_the_limit_get_a_warning(
    make_restricted_app: MakeApp, admin: sa.Engine
) -> None:
    app = make_restricted_app()
    with admin.connect() as connection:
        connection.execute(sa.text("ALTER USER app@localhost WITH MAX_USER_CONNECTIONS 50"))
    report = app.test_cli_runner().invoke(args=["doctor"])
    assert "warn  database connections: up to 96 with one scheduler; the server allows 50" in report.output


@pytest.mark.parametrize(
    ("version", "is_good"),
    [
        ("5.5.5-10.5.8-MariaDB-log", False),
        ("10.5.29-MariaDB", False),
        ("10.6.0-MariaDB", True),
        ("5.5.5-11.4.2-MariaDB-ubu2404", True),
        ("5.7.44-log", False),
        ("8.0.0-dmr", False),
        ("8.0.16", False),
        ("8.0.17", True),
        ("8.0.36-0ubuntu0.22.04.1", True),
        ("9.1.0", True),
    ],
)
def test_outdated_database_server_is_reported(version: str, is_good: bool) -> None:
    result = check_version(version)
    assert result.status == (Status.OK if is_good else Status.FAILURE)
    assert is_good or "Use MySQL 8.0.17, MariaDB 10.6, or newer" in result.advice


def test_schema_revisions_are_those_of_alembic() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    known = frozenset(script.revision for script in scripts.walk_revisions())
    head, revisions = schema_revisions()
    assert head == scripts.get_current_head()
    assert revisions == known
