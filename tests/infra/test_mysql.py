"""Reads take one round trip to MySQL, and connections that are broken are noticed in time."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from app.infra import database, mysql, staleness
from app.infra.database import db, read, read_db_now, reading, run_in_transaction, writing
from app.models import User
from app.settings.database_url import Host
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import LONG

pytestmark = [
    pytest.mark.parametrize("database_url", ["mariadb"], indirect=True),
    pytest.mark.usefixtures("_context"),
]

USERNAMES = sa.select(User.username)


@pytest.fixture
def _context(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have one connection in the pool that is not checked, however slow this machine is."""
    monkeypatch.setattr(mysql, "CHECK_SECONDS", 60.0)
    monkeypatch.setattr(staleness, "IDLE_SECONDS", 60.0)
    monkeypatch.setattr(mysql, "_open", _open_with_timeout)
    with app.app_context():
        read_db_now()
        yield


# Of a statement, in seconds. Instead of 4, so that only those that must end early do so.
STATEMENT_TIMEOUT = {"read_timeout": 60}


_open = mysql._open


def _open_with_timeout(
    dialect: sa.Dialect, arguments: tuple[Any, ...], named: dict[str, Any], host: Host | None, seconds: float
) -> Any:
    return _open(dialect, arguments, named | STATEMENT_TIMEOUT, host, seconds)


@pytest.fixture
def admin(database_url: str) -> Iterator[sa.Connection]:
    """A connection that does not pass the proxy."""
    engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def ada() -> User:
    return User(username="ada", email="ada@example.com", password_hash="x")


def add_ada(session: Session) -> None:
    session.add(ada())


def read_twice() -> None:
    with reading() as session:
        session.execute(USERNAMES)
        session.execute(USERNAMES)


def read_in_session(statement: sa.Select[str]) -> object:
    with reading() as session:
        return session.execute(statement).all()


def write_twice() -> None:
    with writing() as session:
        for name in ("ada", "grace"):
            session.execute(sa.update(User).values(username=name))


def write_nothing() -> None:
    with writing():
        pass


def fail_to_write() -> None:
    with suppress(ZeroDivisionError), writing() as session:
        session.execute(sa.update(User).values(username="ada"))
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (read_db_now, 1),
        (read_twice, 2),
        (write_twice, 3),  # COMMIT
        (write_nothing, 0),
        (fail_to_write, 2),  # ROLLBACK
        (lambda: run_in_transaction(add_ada), 2),
    ],
    ids=["read", "reading", "writing", "nothing", "failing", "transaction"],
)
def test_no_round_trip_is_wasted(
    mysql_proxy: FaultProxy, work: Callable[[], object], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "PING_SECONDS", 60.0)
    before = mysql_proxy.round_trips
    work()
    assert mysql_proxy.round_trips - before == expected


def test_connection_in_use_is_checked_from_time_to_time(
    mysql_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(mysql, "PING_SECONDS", 60.0)
    before = mysql_proxy.round_trips
    read_db_now()
    assert mysql_proxy.round_trips - before == 2


@pytest.mark.parametrize("fault", ["cut", "lose_connections"])
def test_read_on_a_broken_connection_is_repeated(mysql_proxy: FaultProxy, fault: str) -> None:
    getattr(mysql_proxy, fault)()
    began = time.monotonic()
    read_db_now()
    assert time.monotonic() - began < STATEMENT_TIMEOUT["read_timeout"] / 2


@pytest.mark.parametrize("read_rows", [read, read_in_session], ids=["read", "reading"])
def test_read_without_a_reply_is_repeated(mysql_proxy: FaultProxy, read_rows: Callable[..., object]) -> None:
    mysql_proxy.drop_reply(b"FROM users")
    assert read_rows(USERNAMES) == []
    mysql_proxy.wait_until_dropped()


def test_read_is_repeated_on_a_new_connection(
    mysql_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections in the pool are dead, although this process has only just noticed a failure."""
    monkeypatch.setattr(staleness, "PAUSE_SECONDS", 60.0)
    mysql_proxy.cut()
    read_db_now()
    with db.engine.connect(), db.engine.connect():
        pass
    mysql_proxy.lose_connections()
    read_db_now()


@pytest.mark.parametrize(("is_new", "expected"), [(False, 2), (True, 1)], ids=["pooled", "new"])
def test_read_is_repeated_only_on_a_pooled_connection_and_once(
    mysql_proxy: FaultProxy, is_new: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STATEMENT_TIMEOUT, "read_timeout", 1)
    executed: list[object] = []
    event.listen(db.engine, "before_cursor_execute", lambda *arguments: executed.append(arguments[2]))
    if is_new:
        mysql_proxy.cut()
    mysql_proxy.hold("down", b"username")
    with pytest.raises(OperationalError):
        read(USERNAMES)
    mysql_proxy.release()
    assert len(executed) == expected


def test_transaction_is_repeated_if_its_first_statement_has_no_reply(mysql_proxy: FaultProxy) -> None:
    mysql_proxy.drop_reply(b"INSERT INTO users")
    run_in_transaction(add_ada)
    mysql_proxy.wait_until_dropped()
    assert read(USERNAMES) == [("ada",)]


@pytest.mark.parametrize(
    ("lost", "is_idempotent", "expected"),
    [(b"username='ada'", False, 2), (b"COMMIT", False, 1), (b"COMMIT", True, 2)],
    ids=["second statement", "commit", "idempotent"],
)
def test_transaction_is_repeated_if_it_had_no_effect_or_is_idempotent(
    mysql_proxy: FaultProxy, lost: bytes, is_idempotent: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "FAILOVER_SECONDS", LONG)
    runs = []

    def work(session: Session) -> None:
        runs.append(session)
        session.execute(sa.select(sa.literal(1)))
        session.execute(sa.update(User).values(username="ada"))

    mysql_proxy.drop_reply(lost)
    with nullcontext() if expected > 1 else pytest.raises(OperationalError):
        run_in_transaction(work, is_idempotent=is_idempotent)
    mysql_proxy.wait_until_dropped()
    assert len(runs) == expected


def test_transaction_whose_server_was_silent_for_long_is_not_repeated(
    mysql_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "FAILOVER_SECONDS", 0.0)
    runs = []

    def work(session: Session) -> None:
        runs.append(session)
        session.execute(sa.select(sa.literal(1)))
        session.execute(sa.update(User).values(username="ada"))

    mysql_proxy.drop_reply(b"username='ada'")
    with pytest.raises(OperationalError):
        run_in_transaction(work)
    assert len(runs) == 1


def test_transaction_that_cannot_begin_is_not_repeated(mysql_proxy: FaultProxy) -> None:
    runs = []

    def work(session: Session) -> None:
        runs.append(session)
        session.execute(sa.select(sa.literal(1)))

    mysql_proxy.refuse()
    with pytest.raises(OperationalError):
        run_in_transaction(work)
    assert len(runs) == 1


@pytest.mark.parametrize("failing", [0, 1], ids=["first", "second"])
def test_transaction_with_a_failed_statement_can_only_be_rolled_back(
    admin: sa.Connection, failing: int
) -> None:
    """MySQL may have rolled it back already. Later statements would be committed on their own."""
    run_in_transaction(add_ada)
    admin.execute(sa.text("BEGIN"))
    admin.execute(sa.text("SELECT * FROM users WHERE username = 'ada' FOR UPDATE"))
    add_grace = sa.insert(User).values(username="grace", email="grace@example.com", password_hash="x")
    statements: list[sa.Executable] = [add_grace, add_grace]
    statements[failing] = USERNAMES.with_for_update(nowait=True)

    def work() -> None:
        with writing() as session:
            for statement in statements:
                with suppress(OperationalError):
                    session.execute(statement)

    with pytest.raises(ProgrammingError):
        work()
    admin.execute(sa.text("ROLLBACK"))
    assert read(USERNAMES) == [("ada",)]
    write_nothing()
    run_in_transaction(lambda session: session.execute(add_grace))  # the connection can be used again


def test_only_what_is_committed_is_read(admin: sa.Connection) -> None:
    with reading() as session, writing() as other:
        assert session.execute(USERNAMES).all() == []
        other.add(ada())
        other.flush()
        assert session.execute(USERNAMES).all() == []
        assert read(USERNAMES) == []
        other.commit()
        assert session.execute(USERNAMES).all() == [("ada",)]
        assert read(USERNAMES) == [("ada",)]


def test_transaction_sees_what_others_commit_meanwhile() -> None:
    with writing() as session:
        assert session.execute(USERNAMES).all() == []
        run_in_transaction(add_ada)
        assert session.execute(USERNAMES).all() == [("ada",)]


def test_reading_does_not_hold_up_migrations(admin: sa.Connection) -> None:
    admin.execute(sa.text("SET SESSION lock_wait_timeout = 60"))
    with reading() as session:
        session.execute(USERNAMES)
        read(USERNAMES)
        admin.execute(sa.text("LOCK TABLES users WRITE"))
        admin.execute(sa.text("UNLOCK TABLES"))
