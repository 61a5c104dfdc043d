"""The database returns what was stored, and errors reveal nothing."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from app.infra.database import db, read, reading, writing
from app.models import User


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 11, 22, 7, 0, 0, tzinfo=UTC),
        datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-11))),
    ],
)
def test_datetime_keeps_its_zone_and_microseconds(app: Flask, moment: datetime) -> None:
    with app.app_context():
        with writing() as db:
            db.add(User(username="ada", email="a@b.example", password_hash="x", created_at=moment))
        with reading() as db:
            stored = db.scalar(sa.select(User.created_at))

    assert stored == moment
    assert stored is not None
    assert stored.tzinfo is UTC


def test_failed_transaction_leaves_nothing(app: Flask) -> None:
    def fail() -> None:
        with writing() as db:
            db.add(User(username="ada", email="a@b.example", password_hash="x"))
            db.flush()
            raise ZeroDivisionError

    with app.app_context():
        with pytest.raises(ZeroDivisionError):
            fail()
        with reading() as db:
            assert db.scalar(sa.select(sa.func.count()).select_from(User)) == 0


@pytest.mark.requirement("J1")
def test_database_error_does_not_quote_the_row(app: Flask) -> None:
    """Unexpected errors are logged with their message."""
    with app.app_context(), pytest.raises(sa.exc.IntegrityError) as failed, writing() as db:
        db.execute(sa.insert(User).values(username="ada", email=None, password_hash="hunter2"))

    assert "INSERT INTO users" in str(failed.value)
    assert "hunter2" not in str(failed.value)


@pytest.mark.sqlite_only
def test_single_read_executes_one_statement(app: Flask) -> None:
    """On SQLite, as on MySQL (`test_mysql.py`)."""
    executed: list[str] = []
    with app.app_context():
        with db.engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            driver.set_trace_callback(executed.append)
        assert read(sa.select(User.username)) == []
        driver.set_trace_callback(None)

    assert len(executed) == 1


def test_single_read_sees_what_has_been_committed(app: Flask) -> None:
    with app.app_context():
        with writing() as db:
            db.add(User(username="ada", email="a@b.example", password_hash="x"))
            db.flush()
            assert read(sa.select(User.username)) == []
        assert read(sa.select(User.username)) == [("ada",)]
