"""Each client id has its own limits."""

import pytest
from flask import Flask

from app.infra.http_client import HttpResponse
from app.spotify.clients import client_limits
from app.spotify.clients.client_limits import ClientLimitsRegistry
from app.spotify.clients.rate_limit import ME

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def registry(app: Flask) -> ClientLimitsRegistry:
    return another_process(app)


def another_process(app: Flask) -> ClientLimitsRegistry:
    services = app.extensions["backline"]
    return ClientLimitsRegistry(services.redis, services.config)


def test_429_of_one_client_id_delays_no_other(app: Flask, registry: ClientLimitsRegistry) -> None:
    registry.of("one").rate_limiter.block_all(HttpResponse(429, {"retry-after": "40000"}, b""))

    for known in (registry, another_process(app)):
        assert known.of("one").rate_limiter.retry_after(ME) > 30_000
        assert [known.of(client_id).rate_limiter.retry_after(ME) for client_id in ("two", None)] == [0, 0]


def test_429_of_the_deployment_delays_no_own_application(registry: ClientLimitsRegistry) -> None:
    registry.of(None).rate_limiter.block_all(HttpResponse(429, {"retry-after": "40000"}, b""))

    assert registry.of(None).rate_limiter.retry_after() > 30_000
    assert registry.of("one").rate_limiter.retry_after() == 0


def test_circuit_breaker_of_one_client_id_opens_no_other(registry: ClientLimitsRegistry) -> None:
    for caller in range(5):
        registry.of("one").circuit_breaker.record_failure(caller)

    assert registry.of("one").circuit_breaker.is_open
    assert not registry.of("two").circuit_breaker.is_open
    assert not registry.of(None).circuit_breaker.is_open


@pytest.mark.settings(GATEWAY_BUDGET="5")
def test_fixed_budget_is_the_deployments(registry: ClientLimitsRegistry) -> None:
    for client_id in (None, "one"):
        for person in range(5):
            registry.of(client_id).rate_limiter.acquire(person, is_poll=False)

    assert registry.of(None).rate_limiter.budget_usage() == (5, 5)
    assert registry.of("one").rate_limiter.budget_usage() == (5, None)


def test_least_recently_used_limits_are_forgotten(
    registry: ClientLimitsRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_limits, "MAX_REMEMBERED", 2)
    one = registry.of("one")
    registry.of("two")
    assert registry.of("one") is one
    registry.of("three")

    assert list(registry._own) == ["one", "three"]
