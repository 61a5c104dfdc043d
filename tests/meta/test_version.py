"""The version of a release is the same everywhere."""

import json
import re
import tomllib

import pytest
from flask import Flask

from app.version import __version__
from tests.helpers.servers import ROOT


@pytest.mark.sqlite_only
def test_command_shows_the_version_and_the_schema(app: Flask) -> None:
    done = app.test_cli_runner().invoke(args=["version"])

    assert re.fullmatch(rf"Backline {re.escape(__version__)}, schema \d{{4}}\n", done.output)


def test_clients_have_the_version_of_the_release() -> None:
    python = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text(encoding="utf-8"))
    javascript = json.loads((ROOT / "clients/javascript/package.json").read_text(encoding="utf-8"))

    assert {python["project"]["version"], javascript["version"]} == {__version__}


def test_newest_section_of_the_changelog_is_this_release() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.findall(r"^## \[?v?(\d[^\s\]]*)", changelog, re.MULTILINE)[:1] in ([], [__version__])
