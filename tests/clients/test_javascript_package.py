"""The package in clients/javascript: packed, installed, compiled against, and used from Node."""

import json
import os
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from app.settings.types import DEFAULT_SCOPES
from tests.clients.conftest import environment
from tests.conftest import cannot_run
from tests.helpers.node import TEST_PACKAGES, install, run
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import ROOT, Server, Unavailable

SOURCE = ROOT / "clients/javascript"
SCRIPTS = Path(__file__).parent / "javascript"

SCOPES = f"{DEFAULT_SCOPES} playlist-modify-private playlist-modify-public ugc-image-upload"

pytestmark = pytest.mark.sqlite_only


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the packed package and the Web API SDK installed."""
    try:
        packages = install(TEST_PACKAGES)
    except Unavailable as error:
        cannot_run(error)
    folder = tmp_path_factory.mktemp("project")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    pack = ("npm", "pack", "--offline", "--json", "--pack-destination", str(folder))
    [packed] = json.loads(run(SOURCE, *pack, environ=environment(npm_config_cache=str(folder / "cache"))))
    with tarfile.open(folder / packed["filename"]) as archive:  # npm would do no more: it has no dependencies
        archive.extractall(folder / "node_modules", filter="data")
    (folder / "node_modules/package").rename(folder / "node_modules/backline")
    (folder / "node_modules/@spotify").symlink_to(packages / "@spotify")
    return folder


def test_package_has_no_dependencies_and_only_its_own_files(project: Path) -> None:
    installed = project / "node_modules/backline"
    manifest = json.loads((installed / "package.json").read_text())
    assert not {"dependencies", "peerDependencies", "scripts"} & manifest.keys()
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"README.md", "LICENSE", "src/index.js", "types/index.d.ts", "types/openapi.d.ts"} <= files
    folders = {path.partition("/")[0] for path in files}
    assert folders == {"README.md", "LICENSE", "package.json", "src", "types"}


def test_types_accept_what_the_api_accepts_and_nothing_else(project: Path) -> None:
    (project / "types.ts").write_text((SCRIPTS / "types.ts").read_text())
    # The SDK's own types need --skipLibCheck and a bundler.
    options = ["--strict", "--noEmit", "--skipLibCheck", "--target", "es2022", "--module", "esnext"]
    options += ["--moduleResolution", "bundler"]
    run(project, str(TEST_PACKAGES / "node_modules/.bin/tsc"), *options, "types.ts")


def test_package_works_with_cookies_and_tokens(
    project: Path, server: Callable[..., AbstractContextManager[Server]], sandbox: SandboxClient
) -> None:
    with server(workers=1, SPOTIFY_SCOPES=SCOPES) as api:
        use(project, "package.test.mjs", API_URL=api.url, SANDBOX_URL=sandbox.url)


def use(project: Path, script: str, **environ: str) -> None:
    (project / script).write_text((SCRIPTS / script).read_text())
    run(project, "node", "--test", script, environ={**os.environ, **environ})
