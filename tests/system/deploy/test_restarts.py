"""Reloading, restarting, and killing gunicorn under load, as systemd does it, behind nginx."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import start
from tests.helpers.load import Call, Ended, Load
from tests.helpers.servers import Nginx, eventually, running_nginx
from tests.helpers.web_service import WebService, running_web_service

pytestmark = pytest.mark.processes

# nginx sends a POST on a kept-alive connection and, unlike a GET, does not send it again when that breaks.
CALLS = [Call("GET", "/api/session", 200), Call("POST", "/api/logout", 204)]
IN_BETWEEN = 100


@pytest.fixture(scope="module")
def service(behind_nginx: dict[str, str]) -> Iterator[WebService]:
    """gunicorn with two workers, started from the unit."""
    with running_web_service({**behind_nginx, "WEB_CONCURRENCY": "2"}) as running:
        yield running


@pytest.fixture(scope="module")
def in_front(service: WebService) -> Iterator[Nginx]:
    """nginx before it."""
    with ExitStack() as stack:
        # A restart may take long on a busy machine. Requests wait for it.
        patience = {"proxy_read_timeout 20s": "proxy_read_timeout 300s"}
        yield start(stack, running_nginx(service.port, patience))


@pytest.mark.requirement("M1")
def test_no_request_is_lost_during_reloads_and_restarts(service: WebService, in_front: Nginx) -> None:
    with Load(in_front.port, in_front.certificate, CALLS, clients=4) as load:
        load.wait_for(IN_BETWEEN)
        for change in (service.reload, service.restart):
            change()
            load.wait_for(IN_BETWEEN)

    assert load.failed == []


def test_reload_with_invalid_settings_changes_nothing(service: WebService) -> None:
    checked = service.check(APP_ENV="production", SECRET_KEY="short")

    assert (checked.returncode, "SECRET_KEY" in checked.stderr) == (3, True)


@pytest.mark.requirement("M1")
def test_killed_worker_loses_only_its_own_requests(service: WebService, in_front: Nginx) -> None:
    with Load(in_front.port, in_front.certificate, CALLS, clients=4) as load:
        load.wait_for(IN_BETWEEN)
        [lost, other] = service.workers
        killed_at = time.monotonic()
        os.kill(lost, signal.SIGKILL)
        eventually(lambda: len(service.workers) == 2 and lost not in service.workers, timeout=60)
        replaced_at = time.monotonic()
        load.wait_for(IN_BETWEEN)

    assert other in service.workers
    assert [each for each in load.failed if each.ended < killed_at or each.began > replaced_at] == []
    assert [each for each in load.failed if not is_unavailable(each)] == []


def is_unavailable(failed: Ended) -> bool:
    return failed.status == 502 and json.loads(failed.body)["type"] == "/problems/service-unavailable"


@pytest.mark.requirement("M1")
def test_no_request_is_lost_while_another_gunicorn_takes_over(service: WebService, in_front: Nginx) -> None:
    """This is the last test: systemd would consider the service as ended."""
    with Load(in_front.port, in_front.certificate, CALLS, clients=4) as load:
        load.wait_for(IN_BETWEEN)
        service.replace()
        load.wait_for(IN_BETWEEN)

    assert load.failed == []
