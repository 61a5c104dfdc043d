"""MySQL fails over, drops idle connections, or accepts too few of them."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from app.infra import mysql, mysql_pool, staleness
from app.infra.database import db, db_now, read_db_now, run_in_transaction, writing
from tests.conftest import MakeApp
from tests.helpers.fake_mysql import fake_mysql
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import PASSWORD
from tests.helpers.servers import LONG, eventually, mysql_url

pytestmark = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)

IDLE_CONNECTIONS = 4
GRANTED = "SELECT, INSERT, UPDATE, DELETE"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MariaDB take its time on a busy machine, and keep connections that are idle meanwhile."""
    for module, name in (
        *((staleness, "IDLE_SECONDS"), (mysql_pool, "IDLE_SECONDS")),
        *((mysql, "PING_SECONDS"), (mysql, "CONNECT_SECONDS"), (mysql, "WAIT_SECONDS")),
    ):
        monkeypatch.setattr(module, name, int(LONG))


@pytest.fixture
def admin(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    yield engine
    with engine.connect() as connection:
        connection.execute(sa.text("SET GLOBAL read_only = 0"))
    engine.dispose()


@pytest.fixture
def make_restricted_app(make_app: MakeApp, mysql_proxy: FaultProxy, admin: sa.Engine) -> MakeApp:
    """Make applications that reach MariaDB through the proxy, as a user without privileges on the server."""
    with admin.connect() as connection:
        connection.execute(sa.text("CREATE OR REPLACE USER app@localhost IDENTIFIED BY 'pw'"))
        connection.execute(sa.text(f"GRANT {GRANTED} ON backline.* TO app@localhost"))
    return partial(make_app, DATABASE_URL=mysql_url(mysql_proxy.port, user="app:pw"))


@pytest.fixture
def app(make_restricted_app: MakeApp) -> Flask:
    return make_restricted_app()


def fill(app: Flask) -> set[int]:
    """Leave several idle connections in the pool. Return their ids."""
    with app.app_context(), ExitStack() as stack:
        connections = [stack.enter_context(db.engine.connect()) for _ in range(IDLE_CONNECTIONS)]
        return {connection.connection.dbapi_connection.thread_id() for connection in connections}  # type: ignore[union-attr]


def account(name: str) -> dict[str, str]:
    return {"username": name, "email": f"{name}@example.com", "password": PASSWORD}


def test_connections_to_a_read_only_mysql_are_replaced(
    mysql_proxy: FaultProxy, app: Flask, admin: sa.Engine
) -> None:
    old, client = fill(app), app.test_client()
    with admin.connect() as connection:
        connection.execute(sa.text("SET GLOBAL read_only = 1"))
    assert client.post("/api/register", json=account("ada")).status_code == 503
    with admin.connect() as connection:
        connection.execute(sa.text("SET GLOBAL read_only = 0"))

    assert client.post("/api/register", json=account("ada")).status_code == 201
    assert not old & fill(app)


def test_connections_to_a_demoted_mysql_are_replaced_before_a_write_fails(
    mysql_proxy: FaultProxy, app: Flask, admin: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(mysql, "CHECK_SECONDS", 0.0)
    old = fill(app)
    with admin.connect() as connection:
        connection.execute(sa.text("SET GLOBAL read_only = 1"))

    with app.app_context():
        read_db_now()
    assert not old & fill(app)


def test_transaction_is_not_repeated_if_no_connection_can_be_opened(
    mysql_proxy: FaultProxy, app: Flask
) -> None:
    fill(app)
    attempts = []

    def work(session: Session) -> None:
        attempts.append(1)
        db_now(session)

    mysql_proxy.refuse()
    with app.app_context():
        db.engine.dispose()
        with pytest.raises(sa.exc.OperationalError):
            run_in_transaction(work, is_idempotent=True)

    assert len(attempts) == 1


@pytest.mark.parametrize("code", [1290, 1836, 1047, 1053, 1927, 3032, 3100, 1142, 1044, 1146, 9001])
def test_error_reply_replaces_all_older_connections(mysql_proxy: FaultProxy, app: Flask, code: int) -> None:
    fill(app)  # SQLAlchemy queries the properties of the first server
    with fake_mysql(code) as wrong, app.app_context():
        db.engine.dispose()
        right, mysql_proxy.upstream = mysql_proxy.upstream, wrong
        fill(app)
        mysql_proxy.upstream = right
        with pytest.raises(sa.exc.OperationalError), writing() as session:
            db_now(session)

        for _ in range(2 * IDLE_CONNECTIONS):
            with writing() as session:
                db_now(session)


def test_clock_set_back_keeps_the_connections(
    mysql_proxy: FaultProxy, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(app)
    mysql_proxy.cut()
    with app.app_context():
        read_db_now()
    monkeypatch.setattr(sa.pool.base, "time", SimpleNamespace(time=lambda: time.time() - 3600))
    assert fill(app) == fill(app)


def test_pool_does_not_log_each_connection(mysql_proxy: FaultProxy, app: Flask) -> None:
    with app.app_context():
        assert not db.engine.pool.logger.isEnabledFor(logging.INFO)


def test_conflict_keeps_the_connections(mysql_proxy: FaultProxy, app: Flask) -> None:
    old = fill(app)
    with app.app_context(), db.engine.connect() as one, db.engine.connect() as other:
        one.execute(sa.text("SELECT * FROM alembic_version FOR UPDATE"))
        other.execute(sa.text("SET SESSION innodb_lock_wait_timeout = 0"))
        with pytest.raises(sa.exc.OperationalError, match="1205"):
            other.execute(sa.text("SELECT * FROM alembic_version FOR UPDATE"))
    assert fill(app) == old


def test_idle_mysql_connection_is_replaced(
    mysql_proxy: FaultProxy, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(mysql, "PING_SECONDS", 2 * LONG)
    fill(app)
    time.sleep(0.15)
    mysql_proxy.lose_connections()
    began = time.monotonic()
    with app.app_context():
        read_db_now()

    assert time.monotonic() - began < LONG  # a ping on the dropped connection would take longer


@pytest.mark.requirement("L3")
def test_busy_process_shares_a_few_connections(
    app: Flask, make_restricted_app: MakeApp, admin: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX_USER_CONNECTIONS is lower than the pool's limit: callers wait, and none fails."""
    monkeypatch.setattr(mysql_pool, "SHARE_SECONDS", 0.1)
    with admin.connect() as connection:
        connection.execute(sa.text(f"ALTER USER app@localhost WITH MAX_USER_CONNECTIONS {IDLE_CONNECTIONS}"))
    done = threading.Event()

    def work(app: Flask) -> None:
        with app.app_context():
            while not done.is_set():
                read_db_now()

    other = make_restricted_app()
    with ThreadPoolExecutor(12) as pool:
        fill(app)  # takes them all
        busy = [pool.submit(work, app) for _ in range(12)]
        try:
            with other.app_context():
                for _ in range(5):
                    read_db_now()
        finally:
            done.set()
        for worker in busy:
            worker.result()


def test_idle_process_returns_its_connections(
    app: Flask, make_restricted_app: MakeApp, admin: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_pool, "IDLE_SECONDS", 0.2)
    with admin.connect() as connection:
        connection.execute(sa.text(f"ALTER USER app@localhost WITH MAX_USER_CONNECTIONS {IDLE_CONNECTIONS}"))
    other = make_restricted_app()
    fill(app)
    with other.app_context():
        read_db_now()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_idle_connections_are_closed_after_the_sweeper_died(
    mysql_proxy: FaultProxy, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_pool, "SWEEP_SECONDS", -1)  # an error in `sleep`
    fill(app)
    with app.app_context():
        pool: Any = db.engine.pool
    eventually(lambda: not pool._sweeper.is_alive())
    monkeypatch.setattr(mysql_pool, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(mysql_pool, "IDLE_SECONDS", 0.1)
    fill(app)
    eventually(lambda: pool.checkedin() == 0)
