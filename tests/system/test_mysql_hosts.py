"""DATABASE_URL lists several servers, and some of them fail."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from app.infra import mysql, mysql_hosts, mysql_pool, staleness
from app.infra.database import db, run_in_transaction
from tests.conftest import MakeApp
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import LONG, eventually, running_mariadb, socket_of

pytestmark = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MariaDB take its time on a busy machine, but check each connection, and try failed hosts often."""
    for module, name in (
        *((staleness, "IDLE_SECONDS"), (mysql_pool, "IDLE_SECONDS")),
        *((mysql, "PING_SECONDS"), (mysql, "CONNECT_SECONDS"), (mysql, "WAIT_SECONDS")),
        (mysql_pool, "SWEEP_SECONDS"),
    ):
        monkeypatch.setattr(module, name, int(LONG))
    for module, name in (
        *((mysql, "CHECK_SECONDS"), (mysql, "PAUSE_SECONDS"), (staleness, "PAUSE_SECONDS")),
        (mysql_hosts, "STEADY_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(mysql_hosts, "RETRY_SECONDS", 0.1)


@pytest.fixture
def proxies(database_url: str) -> Iterator[tuple[FaultProxy, FaultProxy]]:
    """Two addresses of one server, in the order of preference."""
    with FaultProxy(socket_of(database_url)) as first, FaultProxy(socket_of(database_url)) as second:
        yield first, second


@pytest.fixture
def app(make_app: MakeApp, proxies: tuple[FaultProxy, FaultProxy]) -> Iterator[Flask]:
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
    app = make_app(DATABASE_URL=f"mysql+mysqldb://root@{hosts}/backline?charset=utf8mb4")
    with app.app_context():
        yield app


def used_port() -> int:
    """Return the port to which the next caller's connection leads."""
    with Session(db.engine) as session:
        session.execute(sa.text("SELECT 1"))
        return used_by(session)


def used_by(session: Session) -> int:
    driver = session.connection().connection.dbapi_connection
    return int(driver.server.port)  # type: ignore[union-attr]


def test_preferred_host_is_used_again_when_it_is_back(
    app: Flask, proxies: tuple[FaultProxy, FaultProxy]
) -> None:
    first, second = proxies
    assert used_port() == first.port
    first.refuse()
    assert used_port() == second.port
    first.restore()
    eventually(lambda: used_port() == first.port)


def test_failed_host_is_noticed_between_requests(
    app: Flask, proxies: tuple[FaultProxy, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "CHECK_SECONDS", LONG)
    monkeypatch.setattr(mysql_pool, "SWEEP_SECONDS", 0.05)
    first, second = proxies
    assert used_port() == first.port
    first.refuse()
    eventually(lambda: second.round_trips > 0)
    assert used_port() == second.port
    pool: Any = db.engine.pool
    monkeypatch.setattr(mysql_pool, "IDLE_SECONDS", 1.0)
    eventually(lambda: pool._sweeper is None)  # no connections are left: a check is no use


def test_callers_do_not_wait_for_a_host_that_is_known_to_be_silent(
    app: Flask, proxies: tuple[FaultProxy, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = proxies
    first.blackhole()
    with monkeypatch.context() as hasty:
        hasty.setattr(mysql, "CONNECT_SECONDS", 2)
        eventually(lambda: used_port() == second.port)
    began = time.monotonic()
    with mysql.new_connection():
        assert used_port() == second.port
    assert time.monotonic() - began < LONG / 2  # the time for the first of two hosts


def test_host_that_is_usable_from_time_to_time_is_not_used(
    app: Flask, proxies: tuple[FaultProxy, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_hosts, "STEADY_SECONDS", 2 * LONG)
    first, second = proxies
    first.refuse()
    assert used_port() == second.port
    first.restore()
    before = first.round_trips
    eventually(lambda: first.round_trips > before + 20)  # it was found usable several times
    with mysql.new_connection():
        assert used_port() == second.port


def test_host_whose_disk_is_full_is_left(app: Flask, proxies: tuple[FaultProxy, FaultProxy]) -> None:
    """MariaDB has the same error for a table in memory."""
    first, second = proxies
    attempts = []

    def fill(session: Session) -> None:
        attempts.append(used_by(session))
        full = sa.text("INSERT INTO small SELECT REPEAT('x', 1000) FROM seq_1_to_1000")
        session.execute(full if len(attempts) == 1 else sa.text("SELECT 1"))

    with db.engine.connect() as connection:
        connection.execute(sa.text("SET max_heap_table_size = 16384"))
        connection.execute(sa.text("CREATE TABLE small (text VARCHAR(1000)) ENGINE = MEMORY"))
    try:
        run_in_transaction(fill)
    finally:
        with db.engine.connect() as connection:
            connection.execute(sa.text("DROP TABLE small"))
    assert attempts == [first.port, second.port]
    assert used_port() == second.port


def test_full_server_is_waited_for(
    make_app: MakeApp,
    proxies: tuple[FaultProxy, FaultProxy],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mysql, "WAIT_SECONDS", 0)
    admin = sa.create_engine(database_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text("CREATE OR REPLACE USER few@localhost WITH MAX_USER_CONNECTIONS 1"))
        connection.execute(sa.text("GRANT SELECT ON backline.* TO few@localhost"))
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
    app = make_app(DATABASE_URL=f"mysql+mysqldb://few@{hosts}/backline?charset=utf8mb4")
    with app.app_context(), db.engine.connect(), pytest.raises(sa.exc.OperationalError, match="1226"):
        db.engine.connect()
    assert proxies[1].round_trips == 0


def test_replica_is_used_only_while_no_host_accepts_writes(
    make_app: MakeApp, mysql_proxy: FaultProxy, database_url: str
) -> None:
    with running_mariadb() as replica_url, FaultProxy(socket_of(replica_url)) as replica:
        admin = sa.create_engine(replica_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with admin.connect() as connection:
            connection.execute(sa.text("SET GLOBAL read_only = 1"))
        hosts = f"127.0.0.1:{replica.port},127.0.0.1:{mysql_proxy.port}"
        app = make_app(DATABASE_URL=f"mysql+mysqldb://root@{hosts}/backline?charset=utf8mb4")
        with app.app_context():
            assert used_port() == mysql_proxy.port
            mysql_proxy.refuse()
            assert used_port() == replica.port
            mysql_proxy.restore()
            eventually(lambda: used_port() == mysql_proxy.port)
            mysql_proxy.refuse()
            with admin.connect() as connection:
                connection.execute(sa.text("SET GLOBAL read_only = 0"))  # it is promoted
            assert used_port() == replica.port
