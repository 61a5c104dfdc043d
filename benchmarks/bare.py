"""What a Flask application costs that does nothing, or only one read of Redis and one of the database.

`bare:app` is the unit of the benchmark's ratios. It reads REDIS_URL and DATABASE_URL.
"""

import os
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
import sqlalchemy as sa
from flask import Flask

app = Flask(__name__)
_store = redis.Redis.from_url(os.environ["REDIS_URL"])
_engine = sa.create_engine(
    os.environ["DATABASE_URL"], pool_size=8, pool_reset_on_return=None, isolation_level="AUTOCOMMIT"
)
_table = sa.table("bare_users", sa.column("id"), sa.column("name"))
_ROW = sa.select(_table.c.id, _table.c.name).where(_table.c.id == sa.bindparam("id"))
_local = threading.local()

BODY = {"id": 1, "name": "ada", "email": "ada@example.com", "authenticated": True}


@app.get("/")
def bare() -> dict[str, object]:
    """Return a constant."""
    return BODY


@app.get("/redis")
def read_redis() -> dict[str, object]:
    """Read a session from Redis, and extend its life."""
    _store.getex("bare:session", ex=3600)
    return BODY


@app.get("/redis-core")
def read_core() -> dict[str, object]:
    """Read Redis, and one row with SQLAlchemy Core: one round trip, because there is no transaction."""
    _store.getex("bare:session", ex=3600)
    with _engine.connect() as connection:
        row = connection.execute(_ROW, {"id": 1}).one()
    return {**BODY, "name": row.name}


@app.get("/redis-mysqlclient")
def read_mysqlclient() -> dict[str, object]:
    """Read Redis, and one row with mysqlclient alone."""
    _store.getex("bare:session", ex=3600)
    cursor = _connection().cursor()
    cursor.execute("SELECT id, name FROM bare_users WHERE id = %s", (1,))
    row = cursor.fetchone()
    cursor.close()
    return {**BODY, "name": row[1]}


def _connection() -> Any:
    if not hasattr(_local, "connection"):
        import MySQLdb

        parts = urlsplit(os.environ["DATABASE_URL"])
        [path] = parse_qs(parts.query)["unix_socket"]
        _local.connection = MySQLdb.connect(
            user=parts.username, db=parts.path.strip("/"), unix_socket=path, autocommit=True
        )
    return _local.connection


def prepare() -> None:
    """Create what the routes read."""
    with _engine.connect() as connection:
        connection.execute(sa.text("CREATE TABLE bare_users (id INTEGER PRIMARY KEY, name VARCHAR(64))"))
        connection.execute(sa.text("INSERT INTO bare_users VALUES (1, 'ada')"))
    _store.set("bare:session", b"x" * 400)


if __name__ == "__main__":
    prepare()
