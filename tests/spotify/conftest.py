"""A Redis client, and a person who has connected Spotify."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from tests.helpers.cached_reads import Store
from tests.helpers.redis_cluster import direct_client
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.upstream import Upstream, connect_through


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    with direct_client(redis_url) as client:
        yield client


@pytest.fixture
def connected(client: FlaskClient, sandbox: SandboxClient, upstream: Upstream) -> FlaskClient:
    """Return the client of a visitor who has connected Spotify. The stand-in responds `{}`."""
    connect_through(client, sandbox, upstream)
    return client
