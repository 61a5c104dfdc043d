"""docs/cluster.md names files and settings that exist, and all of those in deploy/cluster."""

import re
from pathlib import Path

import pytest

from tests.cluster.faults import FAULTS
from tests.helpers.servers import ROOT

FOLDER = ROOT / "deploy" / "cluster"
TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SETTINGS = re.findall(r"^\| `([\w.@-]+)` \| `([^`]+)` \|", TEXT, re.MULTILINE)


def test_every_file_is_explained() -> None:
    assert set(re.findall(r"`deploy/cluster/([\w.@-]+)`", TEXT)) == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:deploy|script)/[\w.@/-]*)`", TEXT))))
def test_named_file_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("file", "setting"), SETTINGS)
def test_named_setting_is_in_its_file(file: str, setting: str) -> None:
    assert setting in (FOLDER / file).read_text()


def test_settings_are_named() -> None:
    assert len(SETTINGS) > 10


def test_every_fault_has_a_result() -> None:
    table = TEXT.partition("## What happens at each fault")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(FAULTS)


def test_help_lists_every_fault() -> None:
    text = Path(ROOT / "script" / "cluster").read_text()
    assert {name for name in FAULTS if not re.search(rf"\b{name}\b", text)} == set()


def test_readiness_is_asked_for_by_a_trusted_name() -> None:
    commands = re.findall(r"`(curl [^`]*/readyz)`", TEXT)
    assert commands
    checked = re.search("hdr Host (.*)", (FOLDER / "haproxy.cfg").read_text())
    assert checked
    assert all(f"Host: {checked[1]}" in command for command in commands)
