from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.world import World, running_world
from tests.conftest import start


@pytest.fixture(scope="session")
def running_servers() -> Iterator[World]:
    with ExitStack() as stack:
        yield start(stack, running_world())


@pytest.fixture(scope="module")
def world(running_servers: World) -> Iterator[World]:
    """MariaDB, Redis and the sandbox; `run_product` starts what uses them."""
    yield running_servers
    running_servers.close()
