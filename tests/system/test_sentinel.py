"""Redis Sentinel: sessions survive the loss of the primary, and a former primary that comes back."""

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.conftest import MakeApp, cannot_run
from tests.helpers.flows import login, register
from tests.helpers.redis_nodes import running_sentinel_deployment
from tests.helpers.servers import Unavailable, eventually

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
