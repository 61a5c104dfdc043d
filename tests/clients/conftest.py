"""Backline, and a person with an account there."""

import logging
from collections.abc import Iterator

import pytest

from tests.clients.accounts import SCOPES, Account
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server, running_server


@pytest.fixture(autouse=True)
def _quiet_spotipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep spotipy from logging: at the level DEBUG, it logs the token."""
    monkeypatch.setattr(logging.getLogger("spotipy.client"), "disabled", True)


@pytest.fixture(scope="session")
def api(shared_env: dict[str, str]) -> Iterator[Server]:
    """Backline, shared by all tests."""
    with running_server({**shared_env, "SPOTIFY_SCOPES": SCOPES}, workers=1, threads=8) as running:
        yield running


@pytest.fixture
def account(api: Server, sandbox: SandboxClient) -> Iterator[Account]:
    account = Account(api, sandbox)
    yield account
    account.close()
