from collections.abc import Iterator

import pytest
import redis

from app.infra.redis_client import redis_client
from tests.helpers.servers import patient


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """An empty Redis."""
    client = patient(redis_client(redis_url))
    yield client
    client.close()
