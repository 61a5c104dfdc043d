"""When /readyz fails: not at once, because a failover must not take all hosts out of the load balancer."""

import pytest
from flask.testing import FlaskClient

from app.web import health
from app.web.health import Readiness
from tests.conftest import MakeApp
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import eventually

WORKING, FAILING = {"mysql": None, "redis": None}, {"mysql": None, "redis": "ReadOnlyError"}

pytestmark = pytest.mark.sqlite_only


def test_dependency_must_fail_for_longer_than_a_failover_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.FAILOVER_SECONDS == 5
    readiness = Readiness()
    assert readiness.is_ready(WORKING)
    monkeypatch.setattr(health, "FAILOVER_SECONDS", 600.0)
    assert readiness.is_ready(FAILING)
    monkeypatch.setattr(health, "FAILOVER_SECONDS", 0.0)
    assert not readiness.is_ready(FAILING)
    assert readiness.is_ready(WORKING)
    monkeypatch.setattr(health, "FAILOVER_SECONDS", 600.0)
    assert readiness.is_ready(FAILING)  # another outage


def test_dependency_that_has_never_worked_is_not_waited_for() -> None:
    readiness = Readiness()
    assert not readiness.is_ready(FAILING)
    assert readiness.is_ready(WORKING)


def test_readyz_survives_a_short_outage(
    make_app: MakeApp, redis_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_app().test_client()
    monkeypatch.setattr(health, "FAILOVER_SECONDS", 600.0)
    eventually(lambda: client.get("/readyz").status_code == 200)
    redis_proxy.refuse()
    redis_proxy.cut()
    assert client.get("/readyz").status_code == 200
    monkeypatch.setattr(health, "FAILOVER_SECONDS", 0.0)
    assert client.get("/readyz").status_code == 503


def test_working_servers_are_ready(client: FlaskClient) -> None:
    assert client.get("/readyz").status_code == 200
