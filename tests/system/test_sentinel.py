"""Redis Sentinel: sessions survive the loss of the primary, and a former primary that comes back."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from flask.testing import FlaskClient

from app.doctor.redis_server import check_redis
from app.infra import redis_sentinel
from app.infra.redis_client import redis_client
from app.infra.redis_sentinel import Sentinels
from app.settings.redis_urls import parse_sentinel_url
from tests.conftest import MakeApp, cannot_run, start
from tests.helpers import time_limits
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import login, register
from tests.helpers.redis_nodes import (
    PASSWORD,
    SENTINEL_PORT,
    running_primary_and_sentinel,
    running_sentinel,
    running_sentinel_deployment,
)
from tests.helpers.servers import LONG, Unavailable, eventually

pytestmark = [pytest.mark.processes, pytest.mark.sqlite_only]


def is_signed_in(client: FlaskClient) -> bool:
    response = client.get("/api/session")
    assert response.status_code == 200, response.text
    return bool(response.json["authenticated"])


@pytest.mark.timeout(600)  # it waits for several failovers
def test_sessions_survive_failovers(make_app: MakeApp, tmp_path: Path) -> None:
    try:
        deployment = running_sentinel_deployment(tmp_path)
    except Unavailable as error:
        cannot_run(error)
    with deployment as servers:
        app = make_app(REDIS_URL=servers.url)
        client, other = app.test_client(), app.test_client()
        user = register(client)
        servers.replicate()

        first = servers.primary
        first.kill()
        servers.wait_for_failover(first)

        eventually(lambda: is_signed_in(client))
        eventually(lambda: login(other, user["username"]).status_code == 200)  # writes to the new primary
        first.start()  # it believes that it is the primary, until a Sentinel tells it otherwise
        eventually(lambda: is_signed_in(client))
        servers.replicate()

        second = servers.primary
        second.redis.pause()
        servers.wait_for_failover(second)

        eventually(lambda: is_signed_in(other))
        second.redis.resume()
        eventually(lambda: client.post("/api/logout").status_code == 204)
        eventually(lambda: not is_signed_in(client))
        eventually(lambda: is_signed_in(other))


def test_sentinel_that_failed_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time_limits.lengthen(monkeypatch)
    monkeypatch.setattr(redis_sentinel, "PAUSE_SECONDS", LONG)
    with ExitStack() as stack:
        address = start(stack, running_sentinel(tmp_path))
        other = stack.enter_context(FaultProxy((address, SENTINEL_PORT)))
        failed = stack.enter_context(FaultProxy((address, 1)))  # closes each connection
        url = parse_sentinel_url(f"redis+sentinel://127.0.0.1:{failed.port},127.0.0.1:{other.port}/unknown")
        assert url is not None
        sentinels = Sentinels(url)
        for client in sentinels._clients:
            stack.callback(client.close)

        def is_asked() -> bool:
            before = failed.opened
            with pytest.raises(redis.ConnectionError):
                sentinels.find_primary()
            return failed.opened > before

        assert is_asked()
        assert not is_asked()
        other.refuse()
        assert is_asked()  # no other one replies
        other.restore()
        assert not is_asked()
        monkeypatch.setattr(redis_sentinel, "PAUSE_SECONDS", 0.0)
        assert is_asked()


def test_address_in_the_list_that_is_no_sentinel_is_skipped(redis_proxy: FaultProxy, tmp_path: Path) -> None:
    with ExitStack() as stack:
        address = start(stack, running_primary_and_sentinel(tmp_path))
        hosts = f"127.0.0.1:{redis_proxy.port},{address}"
        url = f"redis+sentinel://:{PASSWORD}@{hosts}/main"
        with redis_client(url) as client:
            summaries = [result.summary for result in check_redis(client, is_production=False, url=url)]
        unknown = url.replace("/main", "/unknown")
        with redis_client(unknown) as client:
            failed = [result.summary for result in check_redis(client, is_production=False, url=unknown)]

    [plain, sentinel] = [summary for summary in summaries if summary.startswith("Redis: Sentinel ")]
    assert f":{redis_proxy.port}: ResponseError: unknown command 'SENTINEL'" in plain
    assert sentinel.startswith(f"Redis: Sentinel {address}:{SENTINEL_PORT}: the primary is {address}:6379")
    assert failed[0] == "Redis: the Sentinels name no primary"
    assert failed[2] == (
        f"Redis: Sentinel {address}:{SENTINEL_PORT}: ResponseError: No such master with that name"
    )
