"""All connections of a pool are in use: callers get 503, other requests work, and no connection is lost.

The third pool is for calls to Spotify: see tests/resilience/test_bulkhead.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.infra import mysql_pool
from app.infra.database import db
from tests.conftest import MakeApp
from tests.helpers.flows import register
from tests.helpers.processes import RedisServer
from tests.helpers.servers import LONG, eventually
from tests.system.test_failover import old_primary

__all__ = ["old_primary"]  # a fixture

pytestmark = pytest.mark.requirement("L3")

SIZE, OVERFLOW = 2, 1


def check_rejected(client: FlaskClient, path: str) -> None:
    """Check that the request gets a 503, and does not wait until the connections are returned."""
    began = time.monotonic()
    response = client.get(path)
    assert time.monotonic() - began < LONG
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert response.get_json()["type"] == "/problems/service-unavailable"


@contextmanager
def all_held(check_out: Callable[[], Any], count: int) -> Iterator[None]:
    """Hold so many connections. Others, such as the mailer's, are awaited."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.callback(eventually(check_out).close)
        yield


@pytest.mark.settings(DATABASE_POOL_SIZE=str(SIZE), DATABASE_MAX_OVERFLOW=str(OVERFLOW))
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_callers_get_503_while_all_connections_to_mysql_are_in_use(
    app: Flask, client: FlaskClient, new_client: Callable[[], FlaskClient]
) -> None:
    register(client)
    with app.app_context():
        pool: Any = db.engine.pool

    with all_held(pool.connect, SIZE + OVERFLOW):
        check_rejected(client, "/api/user/sessions")
        assert client.get("/livez").status_code == 200
        assert new_client().get("/api/session").status_code == 200  # needs Redis only

    assert client.get("/api/user/sessions").status_code == 200
    eventually(lambda: pool.checkedout() == 0)


@pytest.mark.settings(DATABASE_POOL_SIZE=str(SIZE), DATABASE_MAX_OVERFLOW=str(OVERFLOW))
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_waiting_caller_opens_a_connection_in_place_of_a_broken_one(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed instead of returned, which wakes no one."""
    with app.app_context():
        pool: Any = db.engine.pool
    waits = threading.Event()
    monkeypatch.setattr(mysql_pool, "count_wait", lambda _: waits.set())
    monkeypatch.setattr(pool, "_timeout", 2 * LONG)
    with all_held(pool.connect, SIZE + OVERFLOW - 1):
        broken = eventually(pool.connect)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pool.connect)
            assert waits.wait(LONG)
            broken.invalidate()
            broken.close()
            waiting.result(LONG).close()
    eventually(lambda: pool.checkedout() == 0)


@pytest.mark.sqlite_only
def test_callers_get_503_while_redis_accepts_no_more_connections(
    make_app: MakeApp, old_primary: RedisServer
) -> None:
    app = make_app(REDIS_URL=f"unix://{old_primary.socket}")
    client = app.test_client()
    register(client)
    pool: Any = app.extensions["backline"].redis.connection_pool
    held = [pool.get_connection() for _ in range(pool.idle)]
    old_primary.client.config_set("maxclients", 1)  # fewer than there are already

    check_rejected(client, "/api/session")
    assert client.get("/livez").status_code == 200

    for connection in held:
        pool.release(connection)
    assert client.get("/api/session").status_code == 200
    eventually(lambda: pool.in_use == 0)
