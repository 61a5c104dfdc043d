"""Backline, a person with an account there, and our Python package."""

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.accounts import SCOPES, Account
from tests.helpers.node import run
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, Server, running_server


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


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("python-package")
    shutil.copytree(ROOT / "clients/python", folder / "source")  # building writes into it
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "source")
    run(folder, sys.executable, *build)
    [wheel] = folder.glob("*.whl")
    install = (
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        "installed",
        wheel.name,
    )
    run(folder, sys.executable, *install)
    return folder / "installed"
