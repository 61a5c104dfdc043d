"""The suite's tests of everything that Redis is used for also pass on a Redis Cluster (decision 64).

On a node, a script or command whose keys are in several slots fails. All other tests look for such commands
too, on a single server: see `_hash_slots` in `tests/conftest.py`.

    script/test tests/system/test_suite_on_cluster.py
"""

import os
import subprocess
import sys
from hashlib import sha1
from pathlib import Path

import pytest

from app.infra.redis_keys import KEY_PREFIXES
from tests.helpers import redis_uses
from tests.helpers.redis_cluster import ClusterDeployment
from tests.helpers.servers import ROOT

TESTS = (
    "tests/auth/devices/test_flow.py",
    "tests/infra/test_row_versions.py",
    "tests/operator/test_page.py::test_page_shows_the_last_day",
    "tests/resilience/test_rate_limiter.py",
    "tests/resilience/test_redis_lock.py",
    "tests/spotify/clients/test_budget.py",
    "tests/spotify/clients/test_rate_limit.py",
    "tests/spotify/gateway/test_cache.py",
    "tests/spotify/gateway/test_cache_drop.py",
    "tests/spotify/gateway/test_shared_reads.py",
    "tests/spotify/oauth/test_authorize.py",
    "tests/spotify/test_visitor_sessions.py",
    "tests/spotify/tokens/test_refresh_queue.py::test_schedulers_share_one_rate_limit",
    "tests/user/test_tokens.py",
    "tests/user/test_account.py",
    "tests/web/test_readiness.py",
    "tests/web/test_sessions.py",
    "tests/web/test_stored_sessions.py",
    "tests/web/test_throttle.py",
)
# Which places of the product these tests do not use, and why.
ELSEWHERE = {
    ("app/doctor/redis_nodes.py", "values_of"): "WAIT has no key",
    ("app/doctor/redis_server.py", "client.set"): "asks for permission to use one key",
    ("app/web/sessions/endings.py", "values_of"): "for a server without replicas",
    ("app/web/sessions/endings.py", "round_trip"): "sends one command again that was refused",
}
# What starts processes takes long, and races differ only by how the client finds a node.
LEFT_OUT = ["-k", "not mariadb and not many_races", "-m", "not processes"]


@pytest.mark.processes
@pytest.mark.timeout(2400)
def test_suite_passes_on_a_cluster(redis_cluster: ClusterDeployment, tmp_path: Path) -> None:
    for node in redis_cluster.primaries:
        node.client.script_flush()

    recorded = tmp_path / "redis-uses.json"
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.helpers.redis_uses"]
    options = ["-q", "--tb=short", *plugins, *LEFT_OUT]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--redis-cluster={redis_cluster.url}", *TESTS],
        cwd=ROOT,
        env=inherited | {"REDIS_USES": str(recorded)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2300,
        check=False,
    )

    assert run.returncode == 0, run.stdout
    assert scripts_not_run(redis_cluster) == []
    assert set(KEY_PREFIXES) - redis_uses.prefixes(recorded) == set()
    unused = [place for place in redis_uses.unused(recorded) if (place.path, place.source) not in ELSEWHERE]
    assert not unused, "not used on the cluster:\n" + "\n".join(map(str, unused))


def scripts_not_run(cluster: ClusterDeployment) -> list[str]:
    """Return the product's scripts that no node has run. A node remembers those that it has run."""
    texts = {path.name: path.read_bytes() for path in (ROOT / "app").rglob("*.lua")}
    names = {sha1(text, usedforsecurity=False).hexdigest(): name for name, text in texts.items()}
    known = [node.client.script_exists(*names) for node in cluster.primaries]
    return sorted(name for name, *found in zip(names.values(), *known, strict=True) if not any(found))
