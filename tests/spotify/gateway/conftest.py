"""People who have connected Spotify, and threads to call from."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient

from tests.helpers.cached_reads import another_person
from tests.helpers.flows import connect
from tests.helpers.sandbox_client import SandboxClient


@pytest.fixture
def mira(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """Return the client of a person who has connected Spotify."""
    connect(client, sandbox)
    return client


@pytest.fixture
def jonas(new_client: Callable[[], FlaskClient], sandbox: SandboxClient) -> FlaskClient:
    """Return the client of another person who has connected Spotify."""
    other = new_client()
    connect(other, sandbox, person=another_person(sandbox))
    return other


@pytest.fixture
def pool(sandbox: SandboxClient) -> Iterator[ThreadPoolExecutor]:
    """Return threads for simultaneous calls. Faults end first, so that none is blocked."""
    with ThreadPoolExecutor(32) as pool:
        yield pool
        sandbox.clear_faults()
