"""deploy/install, in a copy of this machine's root directory that disappears afterwards."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.servers import ROOT

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes]

NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]


def can_mount_overlays(folder: Path) -> bool:
    """Return whether this user and this kernel can make the copy."""
    lower, upper, work = (folder / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(lower)]
    tried = subprocess.run([*NAMESPACES, *mount], capture_output=True, check=False, timeout=30)
    return os.geteuid() == 0 and tried.returncode == 0


def test_installation_works_and_can_be_repeated(tmp_path: Path) -> None:
    if not can_mount_overlays(tmp_path):
        pytest.skip("this needs root, and a kernel that mounts overlays")
    script = str(ROOT / "tests/system/deploy/install_in_overlay.sh")
    (folder := tmp_path / "root").mkdir()

    done = subprocess.run(
        [*NAMESPACES, script, str(ROOT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    parts = dict(part.split("\n", 1) for part in done.stdout.split("--- ")[1:])
    assert '"username":"ada"' in parts["web"]
    problems = [line for line in parts["doctor"].splitlines() if line.startswith(("warn", "fail"))]
    assert [line[:13] for line in problems] == ["fail  Spotify"]  # there is no network
    assert parts["backup"].splitlines()[1:] == ["200", "Stop gunicorn and the scheduler first."]
    assert parts["restore"].splitlines()[-1] == "200"  # ada is back
    assert "settings: unchanged" in parts["second installation"]
    permissions = parts["permissions"]
    for path in (".env 600 backline", "migrate.env 600 root", "key.pem 600 root", "backline.conf 640 redis"):
        assert path in permissions
    assert "DROP command denied" in permissions
    assert "NOAUTH" in permissions  # only Backline may use this Redis
    assert permissions.count("enabled\n") == 2


def test_dry_run_changes_nothing_and_says_what_it_would_do(tmp_path: Path) -> None:
    command = [str(ROOT / "deploy/install"), "--dry-run", "--api", "api.example.com"]
    command += ["--app", "https://app.example.com", "--client-id", "0123456789abcdef"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=30)

    assert done.returncode == 0, done.stderr
    assert "write /opt/backline/.env (mode 0600, owner backline)" in done.stdout
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON backline.*" in done.stdout
    assert not Path("/etc/backline").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run"], "needs --api --app --client-id"),
        (["--nonsense"], "There is no option --nonsense"),
        (
            [
                "--dry-run",
                "--api",
                "https://api.example.com",
                "--app",
                "https://a.example",
                "--client-id",
                "0",
            ],
            "--api is a host name",
        ),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [str(ROOT / "deploy/install"), *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert message in done.stderr
