"""A Galera cluster: nodes leave it and come back, and transactions on two nodes conflict at COMMIT."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from threading import Event, Thread

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from app.doctor.mysql_hosts import check_hosts
from app.infra import mysql, mysql_hosts, mysql_pool, staleness
from app.infra.database import db, read, read_db_now, reading, run_in_transaction
from app.models import User
from app.settings.database_url import parse_database_url
from tests.conftest import SETTINGS, MakeApp, start
from tests.helpers.galera import GaleraCluster, GaleraNode, running_galera
from tests.helpers.servers import LONG, eventually, migrate

pytestmark = [
    pytest.mark.processes,
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[GaleraCluster]:
    with ExitStack() as stack:
        cluster: GaleraCluster = start(stack, running_galera())
        migrate({**SETTINGS, "DATABASE_URL": cluster.url, "REDIS_URL": "redis://127.0.0.1:1/0"})
        yield cluster


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the nodes take their time on a busy machine. Connections are not checked before use."""
    for module, name in (
        *((staleness, "IDLE_SECONDS"), (mysql_pool, "IDLE_SECONDS")),
        *((mysql, "PING_SECONDS"), (mysql, "CONNECT_SECONDS"), (mysql, "WAIT_SECONDS")),
        *((mysql, "CHECK_SECONDS"), (mysql, "STATEMENT_SECONDS"), (mysql_pool, "SWEEP_SECONDS")),
    ):
        monkeypatch.setattr(module, name, int(LONG))
    for name in ("CONFLICT_SECONDS", "FAILOVER_SECONDS"):
        monkeypatch.setattr(f"app.infra.database.{name}", LONG)
    monkeypatch.setattr(mysql_hosts, "STEADY_SECONDS", 0.0)
    monkeypatch.setattr(mysql_hosts, "RETRY_SECONDS", 0.2)


@pytest.fixture
def app(make_app: MakeApp, cluster: GaleraCluster) -> Iterator[Flask]:
    eventually(lambda: all(node.is_up() for node in cluster.nodes))
    eventually(lambda: {node.status("wsrep_cluster_size") for node in cluster.nodes} == {"3"})
    app = make_app(DATABASE_URL=cluster.url)
    with app.app_context():
        run_in_transaction(lambda session: session.execute(sa.delete(User)))
        add("ada")
        [ada] = read(sa.select(User.id))
        # The other nodes apply a change after its COMMIT, and tests change the row there.
        for node in cluster.nodes:
            eventually(partial(is_only_user, node, ada.id))
        yield app


def is_only_user(node: GaleraNode, user_id: int) -> bool:
    return node.execute("SELECT id FROM backline.users") == ((user_id,),)


def add(name: str) -> None:
    user = {"username": name, "email": f"{name}@example.com", "password_hash": "x"}
    run_in_transaction(lambda session: session.execute(sa.insert(User).values(user)))


def names() -> list[str]:
    return [row.username for row in read(sa.select(User.username).order_by(User.id))]


def used_address() -> str:
    """Return the node to which the next caller's connection leads."""
    with Session(db.engine) as session:
        return used_by(session)


def used_by(session: Session) -> str:
    driver = session.connection().connection.dbapi_connection
    return str(driver.server.name)  # type: ignore[union-attr]


def test_conflict_at_commit_repeats_the_unit_of_work(app: Flask, cluster: GaleraCluster) -> None:
    seen = []

    def work(session: Session) -> None:
        [row] = session.execute(sa.select(User.password_hash)).all()
        seen.append(row.password_hash)
        session.execute(sa.update(User).values(password_hash=f"{row.password_hash} and ours"))
        if len(seen) == 1:
            cluster.nodes[1].execute("UPDATE backline.users SET password_hash = 'theirs'")

    run_in_transaction(work, retries=1000)  # the other node's change may not have arrived yet
    assert (seen[0], seen[-1]) == ("x", "theirs")
    [[stored]] = read(sa.select(User.password_hash))
    assert stored == "theirs and ours"


@pytest.mark.parametrize("leave", [GaleraNode.isolate, GaleraNode.disconnect], ids=["isolated", "by itself"])
def test_node_that_leaves_its_cluster_is_left_and_used_again(
    app: Flask, cluster: GaleraCluster, leave: Callable[..., None]
) -> None:
    first, second, _ = cluster.nodes
    done = Event()

    def keep_reading() -> None:
        with app.app_context():
            while not done.wait(0.01):
                with suppress(sa.exc.OperationalError):  # the others may need a moment to agree
                    read_db_now()

    assert used_address() == first.address
    readers = [Thread(target=keep_reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        leave(first)
        eventually(lambda: first.status("wsrep_ready") == "OFF")
        eventually(lambda: second.status("wsrep_cluster_size") == "2" and second.is_up())
        eventually(lambda: used_address() == second.address)
        add("grace")
        assert names() == ["ada", "grace"]
        leave(first, is_away=False)
        eventually(lambda: used_address() == first.address)
        assert names() == ["ada", "grace"]
    finally:
        done.set()
        for reader in readers:
            reader.join()
        leave(first, is_away=False)


def test_transaction_on_a_node_that_has_left_is_repeated_on_another(
    app: Flask, cluster: GaleraCluster
) -> None:
    first, second, _ = cluster.nodes
    attempts = []

    def work(session: Session) -> None:
        attempts.append(used_by(session))
        session.execute(sa.update(User).values(password_hash="y"))
        if len(attempts) == 1:
            first.isolate()
            eventually(lambda: first.status("wsrep_ready") == "OFF")
            eventually(lambda: second.status("wsrep_cluster_size") == "2" and second.is_up())
            with reading() as other:  # over the other connection in the pool
                assert [user.username for user in other.scalars(sa.select(User))] == ["ada"]
        session.execute(sa.update(User).values(password_hash="z"))

    with db.engine.connect(), db.engine.connect():
        pass
    try:
        run_in_transaction(work)
    finally:
        first.isolate(is_away=False)
    assert attempts == [first.address, second.address]


def test_new_connection_waits_until_the_node_has_caught_up(app: Flask, cluster: GaleraCluster) -> None:
    first, second, _ = cluster.nodes
    seen: list[str] = []

    def read_names() -> None:
        with app.app_context(), mysql.new_connection():
            seen.extend(names())

    assert names() == ["ada"]
    reader = Thread(target=read_names)
    with first.paused():
        second.execute("UPDATE backline.users SET username = 'grace'")
        reader.start()
        waiting = (
            "SELECT 1 FROM information_schema.processlist WHERE info LIKE 'SET STATEMENT wsrep_sync_wait%'"
        )
        eventually(lambda: seen or first.execute(waiting))
        assert not seen
    reader.join()
    assert seen == ["grace"]


def test_doctor_describes_each_node(app: Flask, cluster: GaleraCluster) -> None:
    lines = [result.summary for result in check_hosts(parse_database_url(cluster.url))]
    for node in cluster.nodes:
        assert any(node.address in line and "accepts writes" in line for line in lines)
        assert any(node.address in line and "Synced in a Galera cluster of 3" in line for line in lines)
