"""The disks of MariaDB and Redis are full: requests get 503, and nothing is lost when there is room again."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import requests
import sqlalchemy as sa

from app.infra.mysql_pool import error_code
from app.infra.redis_client import redis_client
from tests.chaos.browser import Browser
from tests.chaos.checker import check
from tests.chaos.deployment import RecordedDeployment
from tests.chaos.scenarios import JONAS, MIRA
from tests.conftest import cannot_run
from tests.helpers.processes import ApiServer
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Unavailable, _directory, eventually
from tests.helpers.small_disk import SmallMariaDb, SmallRedis, require_own_mounts

TABLE_FULL = 1114

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]


class SmallDeployment(RecordedDeployment):
    """Its servers have disks of their own."""

    database: SmallMariaDb
    redis: SmallRedis


@pytest.fixture(scope="module")
def on_small_disks(sandbox: SandboxClient) -> Iterator[SmallDeployment]:
    with ExitStack() as stack:
        homes = [stack.enter_context(_directory()) for _ in range(3)]
        try:
            require_own_mounts(homes[2])
            database = stack.enter_context(SmallMariaDb(homes[0]))
            redis = stack.enter_context(SmallRedis(homes[1]))
        except Unavailable as error:
            cannot_run(error)
        stack.callback(redis.client.close)
        deployment = SmallDeployment(database, redis, sandbox, homes[2])
        stack.callback(deployment.stop)
        deployment.start(servers=1, schedulers=1)
        yield deployment


def processes(deployment: SmallDeployment) -> list[int]:
    """The ids of all processes, which must not change."""
    [server], [scheduler] = deployment.servers, deployment.schedulers
    return [deployment.database.pid, deployment.redis.pid, server.worker_pid, scheduler.pid]


def check_unavailable(response: requests.Response) -> None:
    """Check that the response says when to try again, and nothing of what the server has said."""
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) > 0
    body = response.text.lower()
    assert [word for word in ("disk", "space", "full", "1114", "misconf", "table") if word in body] == []


def use_up(deployment: SmallDeployment) -> None:
    """Fill the disk, and the free pages of the table to which each change of a grant is copied."""
    deployment.database.fill()
    columns = ", ".join(column.name for column in deployment.metadata.tables["access_tokens"].columns)
    # Smaller than what the product would add, so that there is no room for that.
    copy = f"SELECT 'copy', 1, {columns.replace('scope', '0')} FROM access_tokens LIMIT 1"
    statement = f"INSERT INTO access_tokens_log (log_kind, by_test, {columns}) {copy}"
    while _has_room_for(deployment, statement):
        pass


def _has_room_for(deployment: SmallDeployment, statement: str) -> bool:
    try:
        deployment.sql(statement)
    except sa.exc.OperationalError as error:
        if error_code(error.orig) != TABLE_FULL:
            raise
        return False
    return True


def test_refreshes_are_stored_when_mariadb_has_room_again(on_small_disks: SmallDeployment) -> None:
    """First Spotify has issued a new refresh token, the only valid one, and then no refresh can begin."""
    deployment = on_small_disks
    deployment.reset(rotate=True)
    [server], [scheduler] = deployment.servers, deployment.schedulers
    ada, bob = deployment.connected(MIRA), deployment.connected(JONAS)
    ada_id, bob_id = (deployment.spotify_user_id_of(person) for person in (MIRA, JONAS))
    before = processes(deployment)

    with deployment.held_refresh():
        deployment.expire(ada_id)
        pending = deployment.submit(ada.token, server)
        deployment.wait_for_held_refresh()
        use_up(deployment)
    check_unavailable(pending.result())
    eventually(lambda: ada.call("GET", "/api/user", server).status_code == 200)  # only reads
    deployment.database.free()
    eventually(lambda: ada.token(server).status_code == 200)
    assert deployment.row(ada_id).generation == len(deployment.refresh_calls()) == 1

    deployment.expire(bob_id)
    use_up(deployment)
    check_unavailable(bob.token(server))
    deployment.resume_schedulers()
    eventually(lambda: "OperationalError 1114" in scheduler.log)
    eventually(lambda: "OperationalError 1114" in server.log)
    assert 'route="/api/spotify/token",status="503"' in ada.call("GET", "/metrics", server).text
    deployment.database.free()
    eventually(lambda: bob.token(server).status_code == 200)

    assert processes(deployment) == before
    deployment.settle()
    assert check(deployment.history()).violations == []
    assert len(deployment.refresh_calls()) == 2


def test_sessions_work_when_redis_has_room_again(on_small_disks: SmallDeployment) -> None:
    deployment = on_small_disks
    deployment.reset()
    [server] = deployment.servers
    ada = deployment.connected()
    before = processes(deployment)

    deployment.redis.fill()
    eventually(lambda: user_of(ada, server).status_code == 503)
    check_unavailable(user_of(ada, server))
    assert 'backline_dependency_up{dependency="redis"} 0.0' in ada.call("GET", "/metrics", server).text
    eventually(lambda: "ResponseError MISCONF" in server.log)
    with redis_client(f"unix://{deployment.redis.socket}") as newly_connected:
        assert newly_connected.exists("session:x") == 0  # reads work
    deployment.redis.free()

    eventually(lambda: user_of(ada, server).status_code == 200)
    assert processes(deployment) == before


def user_of(browser: Browser, server: ApiServer) -> requests.Response:
    return browser.call("GET", "/api/user", server)
