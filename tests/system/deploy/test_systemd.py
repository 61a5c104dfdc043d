"""The units in deploy/systemd and deploy/cluster."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import cannot_run
from tests.helpers.servers import ROOT, Unavailable

UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
ALL_UNITS = [*UNITS, *sorted((ROOT / "deploy/cluster").glob("*.service"))]
INSTALLED_AT = {"/opt/backline": str(ROOT), "/usr/local/sbin": str(ROOT / "deploy/cluster")}

pytestmark = pytest.mark.sqlite_only


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        cannot_run(Unavailable("systemd-analyze is not installed"))
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("unit", ALL_UNITS, ids=lambda unit: unit.stem)
def test_unit_exposes_little_of_the_machine(unit: Path) -> None:
    result = analyze("security", "--offline=true", "--threshold=19", str(unit))
    exposure = re.search(r"Overall exposure level .*: ([\d.]+)", result.stdout)

    assert exposure is not None, result.stderr
    assert float(exposure[1]) < 2.0
    assert result.returncode == 0


def test_units_are_valid(tmp_path: Path) -> None:
    """Of the paths, only the project's own are different here."""
    for unit in ALL_UNITS:
        text = unit.read_text()
        for installed, here in INSTALLED_AT.items():
            text = text.replace(installed, here)
        (tmp_path / unit.name).write_text(text)

    result = analyze("verify", "--man=no", "--recursive-errors=no", *map(str, sorted(tmp_path.iterdir())))

    assert result.stderr == ""
    assert result.returncode == 0


def test_units_differ_only_in_what_they_run() -> None:
    """All of them have the same user, settings, and restrictions."""
    different = {"ExecStart", "ExecReload", "Type", "NotifyAccess", "KillMode"}
    different |= {"TimeoutStartSec", "TimeoutStopSec", "Restart", "RestartSec", "RestartPreventExitStatus"}
    different |= {"LimitNOFILE", "TasksMax", "MemoryMax", "EnvironmentFile", "FileDescriptorStoreMax"}
    services = []
    for unit in UNITS:
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(unit)
        services.append({name: value for name, value in parser["Service"].items() if name not in different})

    assert len(UNITS) == 3
    assert services[0] == services[1] == services[2]
    assert services[0]["User"] == "backline"
