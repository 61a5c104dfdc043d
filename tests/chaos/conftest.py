from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.deployment import RecordedDeployment
from tests.conftest import start
from tests.helpers.sandbox_client import SandboxClient


@pytest.fixture(scope="session")
def _deployment(sandbox: SandboxClient) -> Iterator[RecordedDeployment]:
    with ExitStack() as stack:
        yield start(stack, RecordedDeployment.running(sandbox))


@pytest.fixture(scope="module")
def deployment(_deployment: RecordedDeployment) -> Iterator[RecordedDeployment]:
    """MariaDB, Redis, and the sandbox. `start` starts the servers and schedulers that use them."""
    yield _deployment
    _deployment.stop()
