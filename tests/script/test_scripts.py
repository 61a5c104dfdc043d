"""Rules for all scripts, and the lock file."""

import json
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from script.bootstrap import LOCK_FILE, locked_packages
from script.lock import SCANNERS_LOCK_FILE, without_index

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted(path for path in (ROOT / "script").iterdir() if path.is_file() and not path.suffix)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_prints_the_first_comment(script: Path) -> None:
    done = subprocess.run([script, "--help"], cwd="/", capture_output=True, text=True, check=True)
    assert script.read_text().splitlines()[1] == f"# {done.stdout.splitlines()[0]}"
    assert f"  script/{script.name}" in done.stdout
    assert "#" not in done.stdout


@pytest.mark.parametrize("lock_file", [LOCK_FILE, SCANNERS_LOCK_FILE], ids=["app", "scanners"])
def test_lock_file_names_no_package_index(lock_file: Path) -> None:
    text = lock_file.read_text()
    assert json.loads(text)["_meta"]["sources"] == []
    assert "://" not in text
    assert text == without_index(text)


def test_pipenv_is_locked_with_its_dependencies() -> None:
    locked = locked_packages("pipenv")
    assert {"pipenv", "virtualenv", "certifi", "setuptools"} <= locked.keys()
    assert all(package["hashes"] for package in locked.values())


def test_locking_drops_the_index_and_keeps_the_rest() -> None:
    locked = {
        "_meta": {
            "hash": {"sha256": "0"},
            "sources": [{"name": "somewhere", "url": "https://example.com/simple"}],
        },
        "default": {"flask": {"hashes": ["sha256:1"], "index": "somewhere", "version": "==3.1.3"}},
    }
    stored = json.loads(without_index(json.dumps(locked)))
    assert stored["_meta"] == {"hash": {"sha256": "0"}, "sources": []}
    assert stored["default"] == {"flask": {"hashes": ["sha256:1"], "version": "==3.1.3"}}


@pytest.mark.parametrize("python", ["3.11.2", "3.12.0", "3.13.0", "3.14.0"])
@pytest.mark.parametrize(
    "machine", [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")], ids="-".join
)
def test_lock_file_serves_other_pythons_and_machines(python: str, machine: tuple[str, str]) -> None:
    """The lock file is made for one Python version. What others need must be in Pipfile.

    On Debian 12's Python 3.11.2, redis-py needs a package that it does not need on 3.11.3.
    """
    locked = {
        canonicalize_name(name)
        for category, packages in json.loads((ROOT / "Pipfile.lock").read_text()).items()
        if category != "_meta"
        for name in packages
    }
    system, processor = machine
    there: Any = {
        **default_environment(),
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": system,
        "platform_system": system.capitalize(),
        "platform_machine": processor,
        "extra": "",
    }
    needed = [
        Requirement(text)
        for distribution in distributions()
        if canonicalize_name(distribution.name) in locked
        for text in distribution.requires or []
    ]
    missing = {
        str(requirement)
        for requirement in needed
        if requirement.marker
        and requirement.marker.evaluate(there)
        and canonicalize_name(requirement.name) not in locked
    }
    assert missing == set()
