"""Longer time limits than in production, for tests that are not about them: the machine may be busy."""

from types import ModuleType

import pytest

from app.infra import (
    database,
    http_client,
    http_deadline,
    mysql,
    redis_client,
    redis_cluster,
    redis_sentinel,
    sqlite,
    staleness,
)
from app.spotify.clients import accounts, accounts_bulkhead, web_api
from app.spotify.gateway import cache
from app.spotify.oauth import state
from app.spotify.tokens import attempts
from app.web import health
from tests.helpers.servers import LONG

_LIMITS: dict[ModuleType, tuple[str, ...]] = {
    accounts: ("TOTAL_SECONDS",),
    accounts_bulkhead: ("SLOW_SECONDS", "LONG_WAIT_SECONDS"),
    attempts: ("_CLAIM_SECONDS",),
    cache: ("GRACE_SECONDS", "LEASE_SECONDS"),
    database: ("CONFLICT_SECONDS", "FAILOVER_SECONDS"),
    health: ("PROBE_SECONDS",),
    http_client: ("TOTAL_SECONDS",),
    http_deadline: ("CONNECT_SECONDS", "FIRST_BYTE_SECONDS"),
    mysql: ("CONNECT_SECONDS", "PING_SECONDS", "WAIT_SECONDS"),
    redis_client: ("CONNECT_SECONDS", "REPLY_SECONDS"),
    redis_cluster: ("CONNECT_SECONDS",),
    redis_sentinel: ("SENTINEL_SECONDS",),
    sqlite: ("BUSY_SECONDS",),
    staleness: ("IDLE_SECONDS",),
    state: ("WAIT_SECONDS",),
    web_api: ("CANARY_SECONDS", "PROFILE_SECONDS"),
}


def lengthen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the limits of apps in this process, made from now on, to a minute."""
    for module, names in _LIMITS.items():
        for name in names:
            assert isinstance(getattr(module, name), int | float)
            monkeypatch.setattr(module, name, int(LONG))
