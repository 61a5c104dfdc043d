"""Copies of the project with one change, which tests must notice."""

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.conftest import SETTINGS
from tests.helpers.servers import MIGRATED, ROOT, migrate_sqlite

TESTED = ("app", "migrations", "sandbox", "script", "tests", "config.py", "wsgi.py", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """A change of the product, and the test that must notice it."""

    name: str
    file: str
    old: str
    new: str
    test: str


def assert_noticed(mutation: Mutation) -> None:
    """Assert that the test fails in a copy of the project with the change."""
    copy = _copy_of_project()
    own = ("PYTHONDONTWRITEBYTECODE",)  # the next test uses what this one has compiled
    environment = {name: value for name, value in os.environ.items() if name not in own}
    with _changed(copy / mutation.file, mutation.old, mutation.new):
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.test],
            cwd=copy,
            env={**environment, MIGRATED: _migrated_sqlite()},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert run.returncode == 1, run.stdout
    assert "1 failed" in run.stdout, run.stdout


@cache
def _copy_of_project() -> Path:
    """Return a copy for all mutations in this process, each of which is undone."""
    directory = Path(mkdtemp(prefix="backline-"))
    atexit.register(shutil.rmtree, directory)
    _copy(directory, TESTED)
    return directory


@cache
def _migrated_sqlite() -> str:
    """Return a migrated SQLite file, so that not every copy has to create one."""
    file = Path(mkdtemp(prefix="backline-")) / "migrated.sqlite3"
    atexit.register(shutil.rmtree, file.parent)
    migrate_sqlite(file, SETTINGS)
    return str(file)


def copy_with_change(directory: Path, names: Iterable[str], file: str, old: str, new: str) -> Path:
    """Copy files and folders of the project, and replace a text that occurs once. Returns `directory`."""
    _copy(directory, names)
    _change(directory / file, old, new)
    return directory


def _copy(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)


@contextmanager
def _changed(file: Path, old: str, new: str) -> Iterator[None]:
    """Replace a text that occurs once until the end of the block."""
    before = file.read_text(encoding="utf-8")
    _change(file, old, new)
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")
        _forget_compiled(file)


def _change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    count = text.count(old)
    assert count == 1, f"{file} has the text to change {count} times: bring the mutation up to date"
    file.write_text(text.replace(old, new), encoding="utf-8")
    _forget_compiled(file)


def _forget_compiled(file: Path) -> None:
    """Delete the compiled file, which Python would use if time (in seconds) and size were the same."""
    for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
        compiled.unlink()
