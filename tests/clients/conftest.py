"""Backline, a person with an account there, and our Python package."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.accounts import SCOPES, Account
from tests.conftest import cannot_run
from tests.helpers.node import TEST_PACKAGES, install, run
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, Server, Unavailable, running_server


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


def examples(text: str) -> list[tuple[str, str]]:
    """Return the language and the lines of each example in a document."""
    return re.findall(r"^```(sh|python|js)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def environment(*python_paths: Path, **more: str) -> dict[str, str]:
    """Return the environment of a program that may use the virtual environment, and nothing but it."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, python_paths)),
        "PYTHONUNBUFFERED": "1",
        "npm_config_offline": "true",
        **more,
    }


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory, api: Server) -> Path:
    """A folder with the code that the commands in docs/clients.md generate, and with Node packages."""
    folder = tmp_path_factory.mktemp("generated")
    try:
        (folder / "node_modules").symlink_to(install(TEST_PACKAGES))
    except Unavailable as error:
        cannot_run(error)
    documented = examples((ROOT / "docs/clients.md").read_text(encoding="utf-8"))
    [commands] = [lines for _, lines in documented if "generate" in lines]
    (folder / "generate.sh").write_text(commands.replace("https://api.example.com", api.url))
    run(folder, "bash", "-e", "generate.sh", environ=environment())
    return folder
