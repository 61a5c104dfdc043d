"""Three hosts, each with a server and a scheduler, on one MySQL and one Redis: limits hold for all."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
import requests

from app.spotify.clients.budget import WINDOW_SECONDS
from app.spotify.tokens.refresh_pass import RESERVED_SECONDS
from tests.chaos.browser import Browser
from tests.conftest import running_app, start
from tests.helpers.deployment import Deployment
from tests.helpers.factories import create_connections
from tests.helpers.processes import ApiServer, Scheduler
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import PATIENT_GUNICORN, eventually

pytestmark = pytest.mark.processes

RATE, BUDGET = 20, 40
CONNECTIONS = 90
EACH_AT_LEAST = 5
MAKE_DUE = """
UPDATE access_tokens SET due_at = UTC_TIMESTAMP(6), expires_at = UTC_TIMESTAMP(6),
    refreshed_at = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR WHERE lease_until IS NULL
"""


@pytest.fixture(scope="module")
def _deployment(sandbox: SandboxClient) -> Iterator[Deployment]:
    settings = {"REFRESH_RATE": str(RATE), "GATEWAY_BUDGET": str(BUDGET)}
    with ExitStack() as stack:
        running = start(stack, Deployment.running(sandbox, **settings))
        running.start(servers=3, schedulers=3, gunicorn=PATIENT_GUNICORN)
        yield running


@pytest.fixture
def hosts(_deployment: Deployment) -> Iterator[Deployment]:
    """Three hosts without data. Their schedulers are paused."""
    _deployment.reset()
    yield _deployment
    _deployment.reset()


@pytest.fixture
def due(hosts: Deployment) -> None:
    """Connections whose tokens have expired."""
    with running_app(hosts.servers[0].settings) as app:
        create_connections(app, hosts.sandbox, CONNECTIONS)


def refreshed_by(scheduler: Scheduler) -> int:
    return scheduler.log.count('"token_refreshed"')


def arrivals(calls: list[dict[str, Any]]) -> list[datetime]:
    """Return when calls arrived at Spotify."""
    return sorted(datetime.fromisoformat(call["at"]) for call in calls)


@pytest.mark.usefixtures("due")
def test_three_schedulers_share_the_work_and_the_rate(hosts: Deployment) -> None:
    before = [refreshed_by(scheduler) for scheduler in hosts.schedulers]
    hosts.sandbox.clear_calls()
    began = datetime.fromisoformat(hosts.sandbox.advance(0))

    hosts.resume_schedulers()
    eventually(lambda: _all_have_refreshed(hosts, before))

    hosts.pause_schedulers()
    times = arrivals(hosts.sandbox.calls(grant_type="refresh_token"))
    assert len(times) >= 3 * EACH_AT_LEAST
    # However late a call is, it cannot come before its slot. Only each scheduler's first slots may be older:
    # those that it had reserved when it was paused.
    older = len(hosts.schedulers) * RESERVED_SECONDS * RATE
    for number, at in enumerate(times):
        assert (at - began).total_seconds() >= (number - older) / RATE - 0.002, f"{number} calls too early"


def _all_have_refreshed(hosts: Deployment, before: list[int]) -> bool:
    """Return whether each scheduler has made some refreshes, and all together enough to tell the rate."""
    counts = [
        refreshed_by(scheduler) - count for scheduler, count in zip(hosts.schedulers, before, strict=True)
    ]
    if min(counts) >= EACH_AT_LEAST and sum(counts) >= CONNECTIONS:
        return True
    if hosts.sql("SELECT 1 FROM access_tokens WHERE due_at <= UTC_TIMESTAMP(6) LIMIT 1") == []:
        hosts.sql(MAKE_DUE)
    return False


@pytest.mark.usefixtures("due")
def test_refreshing_pauses_on_all_hosts_after_a_429_on_one(hosts: Deployment) -> None:
    first, *others = hosts.schedulers
    hosts.sandbox.fault(on="refresh", kind="rate_limited", retry_after=3600, times=None)
    _resume(first)
    eventually(lambda: hosts.sql("SELECT 1 FROM breakers WHERE closed_at IS NULL"))
    eventually(lambda: not hosts.sql("SELECT 1 FROM access_tokens WHERE lease_until > UTC_TIMESTAMP(6)"))
    hosts.pause_schedulers()
    [(paused_at,)] = hosts.sql("SELECT UTC_TIMESTAMP(6)")
    hosts.sandbox.clear_faults()

    for other in others:
        _resume(other)
        # Each pass reserves slots before it looks for work. When it reserves others, it has looked.
        for _ in range(2):
            _wait_for_reservation(hosts)
        hosts.pause_schedulers()

    # Not in the journal: a last call of the first one may arrive late.
    assert hosts.sql("SELECT * FROM token_refreshes WHERE started_at > :at", at=paused_at) == []


def _wait_for_reservation(hosts: Deployment) -> None:
    before = hosts.redis.client.get("refresh:rate")
    eventually(lambda: hosts.redis.client.get("refresh:rate") not in (None, before))


def _resume(scheduler: Scheduler) -> None:
    scheduler.launch()
    scheduler.resume()


def connected(hosts: Deployment, person: str) -> Browser:
    """Return a browser that is signed in, on all hosts."""
    browser = Browser(hosts.sandbox, [], person, person.replace(".", "").replace("_", "").replace("-", ""))
    response = browser.register(hosts.servers[0]).connect(hosts.servers[0])
    assert response.status_code == 200, response.text
    return browser


def search(browser: Browser, server: ApiServer, number: int = 0) -> requests.Response:
    return browser.call("GET", f"/api/spotify/v1/search?type=track&q={browser.username}{number}", server)


def test_people_share_the_budget_fairly_on_all_hosts(hosts: Deployment) -> None:
    busy, calm = connected(hosts, "mira_t_42"), connected(hosts, "jonas.k")
    hosts.sandbox.clear_calls()
    began = datetime.fromisoformat(hosts.sandbox.advance(0))
    of_calm = [search(calm, server, n) for n, server in enumerate(hosts.servers[:2])]

    with ThreadPoolExecutor(9) as pool:
        many = [pool.submit(search, busy, hosts.servers[n % 3], n) for n in range(2 * BUDGET)]
    of_busy = [call.result().status_code for call in many]
    of_calm += [search(calm, server, n) for n, server in enumerate(hosts.servers[1:], 2)]

    assert [response.status_code for response in of_calm] == [200] * 4
    assert {*of_busy} == {200, 429}
    assert of_busy.count(200) >= BUDGET / 2
    for number, at in enumerate(arrivals(hosts.sandbox.calls(path="/v1/search")), 1):
        windows = 1 + (at - began).total_seconds() // WINDOW_SECONDS
        assert number <= BUDGET * windows, f"call {number} is too early"


def test_hosts_do_not_repeat_a_call_that_another_got_a_429_for(hosts: Deployment) -> None:
    """The last test, because the servers remember it."""
    mira = connected(hosts, "mira_t_42")
    hosts.sandbox.clear_calls()
    hosts.sandbox.fault(on="api", kind="rate_limited", body="quota", retry_after=3600)

    responses = [search(mira, server) for server in hosts.servers]

    assert [response.status_code for response in responses] == [429, 429, 429]
    assert all(3000 < int(response.headers["Retry-After"]) <= 3600 for response in responses)
    assert len(hosts.sandbox.calls(path="/v1/search")) == 1
