"""deploy/gunicorn.conf.py, on a real gunicorn."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import requests

from tests.helpers.servers import LONG, Server, eventually

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
StartServer = Callable[..., AbstractContextManager[Server]]


def test_lost_worker_is_replaced(server: StartServer) -> None:
    with server(workers=2, GUNICORN_CMD_ARGS="--graceful-timeout 300") as api:
        assert len(api.workers) == 2
        lost = api.kill_worker()
        eventually(lambda: len(api.workers) == 2 and lost not in api.workers)
        assert requests.get(f"{api.url}/livez", timeout=LONG).status_code == 200
        api.signal(signal.SIGTERM)  # while the new worker may not handle signals yet
        assert api.wait() == 0  # not killed after the time that a stuck worker gets


@pytest.mark.requirement("K2")
def test_gunicorn_is_private_and_its_home_and_log_stay_clean(server: StartServer, tmp_path: Path) -> None:
    with server(workers=1, HOME=str(tmp_path), LOG_LEVEL="DEBUG") as api:
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert next(at for at in listening if at.endswith(f":{api.port:04X}")) == f"0100007F:{api.port:04X}"
        assert not any(at == f"00000000:{api.port:04X}" for at in listening)
        for headers in (
            {"SCRIPT_NAME": "/livez"},
            {"X-Forwarded-Ssl": "on", "X-Forwarded-Proto": "http"},
            {"X-Forwarded-Protocol": "ssl", "X-Forwarded-Proto": "http"},
        ):
            response = requests.get(f"{api.url}/livez", headers=headers, timeout=LONG)
            assert (response.status_code, response.headers["Content-Type"]) == (
                200,
                "text/plain; charset=utf-8",
            )
        requests.get(f"{api.url}/api/spotify/authorize?code=a-secret-code&state=s", timeout=LONG)
        assert "a-secret-code" not in api.log
        assert list(tmp_path.iterdir()) == []
