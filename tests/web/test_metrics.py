"""Metrics about sessions, sign-ins, limits, and pools of connections."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.infra.clock import utc_now
from app.infra.hourly_counts import HOUR, begin_of_hour
from app.services import Services
from tests.helpers.flows import PASSWORD, register
from tests.helpers.metrics import MetricDeltas, samples

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def deltas(client: FlaskClient) -> MetricDeltas:
    return MetricDeltas(lambda: client.get("/metrics").text)


def test_sessions_and_sign_ins_are_counted(
    new_client: Callable[[], FlaskClient], app: Flask, deltas: MetricDeltas
) -> None:
    register(new_client(), "ada")
    for password, times in (("not the password", 11), (PASSWORD, 1)):
        visitor = new_client()
        visitor.environ_base["REMOTE_ADDR"] = f"192.0.2.{times}"
        for _ in range(times):
            visitor.post("/api/login", json={"login": "ada", "password": password})
    visitor.get("/api/session")
    visitor.post("/api/logout")

    expected = {"ok": 1, "wrong_password": 10, "throttled": 1, "unavailable": 0}
    found = {outcome: deltas.of("backline_logins_total", outcome=outcome) for outcome in expected}
    assert found == expected
    assert deltas.of("backline_throttled_total", limit="guesses") == 1
    assert deltas.of("backline_sessions_started_total", kind="account") == 2
    assert deltas.of("backline_sessions_ended_total") == 1
    assert deltas.of("backline_snapshot_misses_total") >= 1

    # The test may run while an hour ends.
    hours = [begin_of_hour(utc_now()) - ago for ago in (timedelta(0), HOUR)]
    now, before = app.extensions["backline"].hourly_counts.read(hours)
    for event, count in {"login:ok": 1, "login:wrong_password": 10, "throttled:guesses": 1}.items():
        assert now.get(event, 0) + before.get(event, 0) == count


def test_pools_are_sampled(client: FlaskClient, app: Flask) -> None:
    services: Services = app.extensions["backline"]
    pool = services.redis.connection_pool
    taken = [pool.get_connection() for _ in range(3)]
    try:
        found = samples(client.get("/metrics").text)
    finally:
        for connection in taken:
            pool.release(connection)

    def connections(pool: str, state: str) -> float:
        return found["backline_pool_connections", frozenset({("pool", pool), ("state", state)})]

    assert connections("redis", "in_use") == 3
    assert connections("mysql", "in_use") == 0
    assert found["backline_pool_max_connections", frozenset({("pool", "mysql")})] > 1
    assert found["backline_web_api_breaker_open", frozenset()] == 0


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_counts_need_no_redis(client: FlaskClient, app: Flask, deltas: MetricDeltas) -> None:
    services: Services = app.extensions["backline"]

    services.hourly_counts.add("login:ok")
    response = client.post("/api/login", json={"login": "ada", "password": PASSWORD})

    assert response.status_code == 503
    assert deltas.of("backline_logins_total", outcome="unavailable") == 1
    with pytest.raises(redis.RedisError):
        services.hourly_counts.read([utc_now()])
