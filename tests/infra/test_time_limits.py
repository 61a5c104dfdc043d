"""The time limits of production, which other tests change: a busy machine would exceed them."""

import json
import re
import subprocess
import sys

import pytest

from tests.helpers.servers import ROOT

_PRINT_LIMITS = """
import json
from types import SimpleNamespace
from app.infra import http_client, mysql, redis_client
from app.web import throttle

options = mysql.engine_options(SimpleNamespace(database_pool_size=1, database_max_overflow=1))
print(json.dumps({
    "first wait": throttle.FIRST_WAIT_SECONDS,
    "Redis": [redis_client.CONNECT_SECONDS, redis_client.REPLY_SECONDS],
    "MySQL": options["connect_args"]["read_timeout"],
    "wait for a connection": options["pool_timeout"],
    "Spotify": http_client.TOTAL_SECONDS,
}))
"""


@pytest.mark.processes
@pytest.mark.requirement("L2")
@pytest.mark.requirement("L3")
def test_limits_are_nested() -> None:
    """A dependency that stalls is given up before whoever waits for it gives up."""
    command = [sys.executable, "-c", _PRINT_LIMITS]
    limits = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    nginx = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
    [proxy_seconds] = re.findall(r"proxy_read_timeout (\d+)s;", nginx)

    assert limits["first wait"] == 1
    assert limits["Redis"] == [0.5, 0.5]
    assert limits["wait for a connection"] <= 2
    assert limits["MySQL"] <= 5 < limits["Spotify"] <= 10 < 16 < int(proxy_seconds) == 20
