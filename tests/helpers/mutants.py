"""Copies of the project with one change, which tests must notice."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.helpers.servers import ROOT


def copy_with_change(directory: Path, names: Iterable[str], file: str, old: str, new: str) -> Path:
    """Copy files and folders of the project, and replace a text that occurs once. Returns `directory`."""
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    changed = directory / file
    text = changed.read_text(encoding="utf-8")
    count = text.count(old)
    assert count == 1, f"{file} has the text to change {count} times: bring the mutation up to date"
    changed.write_text(text.replace(old, new), encoding="utf-8")
    return directory
