"""For tests of the gateway: an upstream in Spotify's place, and a person who is connected."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.upstream import Upstream, link, running_upstream


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """What the app takes for the Web API, in the place of the sandbox's. Tokens are the sandbox's still."""
    with running_upstream() as found:
        yield found


@pytest.fixture
def connected(client: FlaskClient, sandbox: SandboxClient, upstream: Upstream) -> FlaskClient:
    """A visitor who has connected Spotify. The upstream has forgotten it, and answers `{}`."""
    link(client, sandbox, upstream)
    return client
