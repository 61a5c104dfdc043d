"""The suite's tests of everything that Redis is used for also pass on a Redis Cluster (decision 64).

On a node, a script or command whose keys are in several slots fails.

    script/test tests/system/test_suite_on_cluster.py
"""

import os
import subprocess
import sys
from hashlib import sha1

import pytest

from tests.helpers.redis_cluster import ClusterDeployment
from tests.helpers.servers import ROOT

TESTS = (
    "tests/auth/devices/test_flow.py",
    "tests/infra/test_row_versions.py",
    "tests/resilience/test_rate_limiter.py",
    "tests/resilience/test_redis_lock.py",
    "tests/spotify/clients/test_budget.py",
    "tests/spotify/clients/test_rate_limit.py",
    "tests/spotify/gateway/test_cache.py",
    "tests/spotify/gateway/test_cache_drop.py",
    "tests/spotify/gateway/test_shared_reads.py",
    "tests/spotify/oauth/test_authorize.py",
    "tests/spotify/test_visitor_sessions.py",
    "tests/user/test_tokens.py",
    "tests/user/test_account.py",
    "tests/web/test_readiness.py",
    "tests/web/test_sessions.py",
    "tests/web/test_stored_sessions.py",
    "tests/web/test_throttle.py",
)
# What starts processes takes long, and races differ only by how the client finds a node.
LEFT_OUT = ["-k", "not mariadb and not many_races", "-m", "not processes"]


@pytest.mark.processes
@pytest.mark.timeout(2400)
def test_suite_passes_on_a_cluster(redis_cluster: ClusterDeployment) -> None:
    for node in redis_cluster.primaries:
        node.client.script_flush()

    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", *LEFT_OUT]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--redis-cluster={redis_cluster.url}", *TESTS],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2300,
        check=False,
    )

    assert run.returncode == 0, run.stdout
    assert scripts_not_run(redis_cluster) == []


def scripts_not_run(cluster: ClusterDeployment) -> list[str]:
    """Return the product's scripts that no node has run. A node remembers those that it has run."""
    texts = {path.name: path.read_bytes() for path in (ROOT / "app").rglob("*.lua")}
    names = {sha1(text, usedforsecurity=False).hexdigest(): name for name, text in texts.items()}
    known = [node.client.script_exists(*names) for node in cluster.primaries]
    return sorted(name for name, *found in zip(names.values(), *known, strict=True) if not any(found))
