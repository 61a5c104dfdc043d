"""Counts round trips to Redis and to the database at the connections themselves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from app.infra import redis_connection
from app.infra.database import db
from app.infra.redis_cluster import ClusterPool


@dataclass
class RoundTrips:
    """The commands of each round trip to Redis, and each round trip to the database by its first word."""

    redis: list[str] = field(default_factory=list)
    sql: list[str] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of round trips to Redis and to the database."""
        return len(self.redis), len(self.sql)


@contextmanager
def counting(app: Flask) -> Iterator[RoundTrips]:
    """Count the round trips of this thread while the block runs, as a test client's requests make them."""
    if isinstance(app.extensions["backline"].redis.connection_pool, ClusterPool):
        pytest.skip("counts round trips, and there is one for each node")
    found = RoundTrips()
    with app.app_context():
        engine = db.engine
    with _counting_redis(found), _counting_sql(found, engine):
        yield found


@contextmanager
def _counting_redis(found: RoundTrips) -> Iterator[None]:
    thread, monitored = threading.get_ident(), redis_connection._Monitored
    send = monitored.send_packed_command

    def send_counted(connection: Any, command: Any, check_health: bool = True) -> None:
        if threading.get_ident() == thread and not connection._is_connecting:
            found.redis.append(_names(command))
        send(connection, command, check_health)

    with patch.object(monitored, "send_packed_command", send_counted):
        yield


@contextmanager
def _counting_sql(found: RoundTrips, engine: sa.Engine) -> Iterator[None]:
    thread, ping = threading.get_ident(), engine.dialect.do_ping

    def add(what: str) -> None:
        if threading.get_ident() == thread:
            found.sql.append(what)

    def ping_counted(connection: Any) -> bool:
        add("PING")
        return ping(connection)

    listeners: list[tuple[Any, str, Any]] = [
        (engine, "before_cursor_execute", lambda *arguments: add(arguments[2].split()[0])),
        (engine, "commit", lambda _: add("COMMIT")),
        (engine, "rollback", lambda _: add("ROLLBACK")),
    ]
    if engine.dialect.name != "sqlite":
        listeners.append((engine.pool, "reset", lambda *_: add("RESET")))
    for listener in listeners:
        event.listen(*listener)
    try:
        with patch.object(engine.dialect, "do_ping", ping_counted):
            yield
    finally:
        for listener in listeners:
            event.remove(*listener)


def _names(packed: Any) -> str:
    """Return the names of the commands in one round trip."""
    data = packed if isinstance(packed, bytes) else b"".join(packed)
    lines = data.split(b"\r\n")
    names = [lines[index + 2] for index, line in enumerate(lines) if line[:1] == b"*" and line[1:].isdigit()]
    return " ".join(name.decode(errors="replace") for name in names)
