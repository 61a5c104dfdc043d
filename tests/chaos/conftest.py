from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.world import World, running_world
from tests.conftest import start


@pytest.fixture(scope="session")
def servers_of_the_world() -> Iterator[World]:
    with ExitStack() as stack:
        yield start(stack, running_world())


@pytest.fixture(scope="module")
def world(servers_of_the_world: World) -> Iterator[World]:
    """MariaDB, Redis and the sandbox; `run_product` starts what uses them."""
    yield servers_of_the_world
    servers_of_the_world.close()
