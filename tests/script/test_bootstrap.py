"""script/bootstrap: messages if something is missing, and speed if nothing is."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from script import bootstrap
from tests.helpers.children import start_child
from tests.helpers.servers import LONG

Machine = Callable[..., str]

# Any installation fails immediately.
UNREACHABLE_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_RETRIES": "0",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
}
BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["script/bootstrap", *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


@pytest.fixture
def no_pipenv(clone: Path) -> None:
    """A pipenv that is installed, and fails."""
    (clone / ".pipenv/venv/bin").mkdir(parents=True)
    (clone / ".pipenv/venv/bin/python").symlink_to("/bin/false")
    (clone / ".pipenv/venv/.stamp").write_text(bootstrap.locked_requirements("pipenv"))


def test_up_to_date_checkout_installs_and_prints_nothing(
    checkout: Path, bare_environment: dict[str, str]
) -> None:
    done = run(checkout, "--dev", **bare_environment, **UNREACHABLE_INDEX)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (checkout / ".pipenv").exists()


def test_old_python_is_named_with_what_to_install(clone: Path, machine: Machine) -> None:
    path = machine(python3="echo 3.9.18; exit 1", python3_11="exit 127", python="exit 127")
    done = run(clone, PATH=path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "python3 is 3.9.18" in done.stderr
    assert "apt-get install python3" in done.stderr


def test_missing_compiler_is_named_with_install_commands(clone: Path, machine: Machine) -> None:
    done = run(clone, "--mysql", PATH=machine(pkg_config="exit 0"))
    assert done.returncode == 1
    assert "something is missing: gcc.\n" in done.stderr
    assert "apt-get install gcc\n" in done.stderr
    assert "dnf install gcc" in done.stderr
    assert "xcode-select --install" in done.stderr
    assert not (clone / ".pipenv/venv").exists(), "the message must come before the installation"


def test_missing_headers_are_named_alone(clone: Path, machine: Machine) -> None:
    done = run(clone, "--mysql", PATH=machine(cc="exit 0", pkg_config="exit 1"))
    assert "something is missing: libmariadb-dev.\n" in done.stderr


@pytest.mark.parametrize(
    "line", ['DATABASE_URL="mysql+mysqldb://a:b@c/d"', "export DATABASE_URL = mysql://a@b/c"]
)
def test_mysql_url_in_dotenv_installs_mysql(clone: Path, machine: Machine, line: str) -> None:
    (clone / ".env").write_text(f"APP_ENV=development\n{line}\n")
    done = run(clone, PATH=machine(pkg_config="exit 0"))
    assert "something is missing: gcc.\n" in done.stderr


def test_unreachable_index_is_explained(clone: Path, bare_environment: dict[str, str]) -> None:
    done = run(clone, **bare_environment, **UNREACHABLE_INDEX)
    assert done.returncode == 1
    assert "package index cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_unfinished_venv_is_recreated(clone: Path, bare_environment: dict[str, str], no_pipenv: None) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").symlink_to(BASE_PYTHON)
    (clone / ".venv/left-over").touch()
    done = run(clone, **bare_environment, **UNREACHABLE_INDEX)
    assert "Recreating .venv" in done.stdout
    assert not (clone / ".venv/left-over").exists()


def test_unexplained_failure_shows_the_end_of_the_log() -> None:
    reported = bootstrap.explain_failure("Collecting x\n" * 30 + "error: command 'cc' failed\n")
    assert "error: command 'cc' failed" in reported
    assert len(reported.splitlines()) < 20


def test_package_with_another_hash_is_explained() -> None:
    pip = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    assert "is not the file that was locked" in bootstrap.explain_failure(pip)


def test_second_bootstrap_waits_and_uses_what_the_first_installed(
    clone: Path, bare_environment: dict[str, str]
) -> None:
    (clone / ".pipenv").mkdir()
    with (clone / ".pipenv/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = start_child(
            ["script/bootstrap", "--dev"],
            cwd=clone,
            env={**bare_environment, **UNREACHABLE_INDEX, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert second.stdout is not None
        assert "waiting for it" in second.stdout.readline()
        (clone / ".venv").symlink_to(bootstrap.VENV)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert second.communicate(timeout=LONG)[0] == ""
    assert second.returncode == 0
    assert (clone / ".venv").is_symlink(), "it must not remove the environment that the first one uses"


def test_bootstrap_started_before_the_venv_existed_uses_it(
    checkout: Path, bare_environment: dict[str, str]
) -> None:
    command = [str(BASE_PYTHON), "script/bootstrap.py", "--dev"]
    environ = {**bare_environment, **UNREACHABLE_INDEX}
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (checkout / ".venv").is_symlink()


@pytest.mark.parametrize("body", [f'exec {BASE_PYTHON} "$@"', "exit 1"], ids=["foreign", "broken"])
def test_venv_with_an_unusable_python_is_recreated(
    clone: Path, bare_environment: dict[str, str], no_pipenv: None, body: str
) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/.stamp").write_text('{"made_from": ["", "3.11"], "categories": []}')
    (clone / ".venv/bin/python").write_text(f"#!/bin/sh\n{body}\n")
    (clone / ".venv/bin/python").chmod(0o755)
    done = run(clone, **bare_environment, **UNREACHABLE_INDEX)
    assert "Recreating .venv" in done.stdout
    assert "pip or pipenv failed" in done.stderr


@pytest.mark.requirement("M8")
def test_pipenv_with_another_hash_is_not_installed(
    clone: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "pipenv-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pipenv.py", "")
        wheel.writestr("pipenv-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pipenv\nVersion: 1.0\n")
        wheel.writestr("pipenv-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("pipenv-1.0.dist-info/RECORD", "")
    lock = json.loads((clone / "Pipfile.lock").read_text())
    lock["pipenv"] = {"pipenv": {"version": "==1.0", "hashes": [f"sha256:{'0' * 64}"]}}
    (clone / "Pipfile.lock").write_text(json.dumps(lock))

    done = run(clone, **bare_environment, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))

    assert done.returncode == 1
    assert "is not the file that was locked" in done.stderr
    assert not list(clone.glob(".pipenv/venv/lib/*/site-packages/pipenv*"))


@pytest.mark.parametrize("content", ["A=b\n".encode("utf-16"), "NAME=Zo\xeb\n".encode("latin-1"), None])
def test_unreadable_dotenv_is_left_to_the_app_to_report(
    checkout: Path, bare_environment: dict[str, str], content: bytes | None
) -> None:
    if content is None:
        (checkout / ".env").mkdir()
    else:
        (checkout / ".env").write_bytes(content)
    done = run(checkout, "--dev", **bare_environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_byte_order_mark_does_not_hide_a_mysql_url(clone: Path, machine: Machine) -> None:
    (clone / ".env").write_text("DATABASE_URL=mysql://a@b/c\n", encoding="utf-8-sig")
    assert "something is missing: gcc.\n" in run(clone, PATH=machine(pkg_config="exit 0")).stderr


def test_file_that_cannot_be_written_is_named(clone: Path, bare_environment: dict[str, str]) -> None:
    (clone / ".pipenv").touch()  # any write error
    done = run(clone, **bare_environment)
    assert done.returncode == 1
    assert re.search(r"\.pipenv.*: File exists", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.fixture
def read_only_checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout that this process can read but not write, for the duration of the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ".pipenv").mkdir()
        (folder / ".pipenv/lock").touch()
        (folder / ".pipenv/lock").chmod(0o444)
        folder.chmod(0o755)
        monkeypatch.setattr(bootstrap, "ROOT", folder)
        monkeypatch.setattr(bootstrap, "PIPENV_HOME", folder / ".pipenv")
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(before)


@pytest.mark.usefixtures("read_only_checkout")
def test_user_without_write_permission_gets_a_command() -> None:
    with pytest.raises(bootstrap.BootstrapError) as error, bootstrap.exclusive():
        pass
    assert ".pipenv/lock: Permission denied" in str(error.value)
    assert "chown" in str(error.value)


@pytest.mark.parametrize("module", ["script.bootstrap", "script.server"])
def test_ctrl_c_during_imports_prints_nothing(
    checkout: Path, bare_environment: dict[str, str], module: str
) -> None:
    """An import that never ends simulates a slow disk."""
    stall = "import sys, time; print('importing', flush=True); time.sleep(300)"
    folder = checkout / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(stall)
    process = start_child(
        [".venv/bin/python", "-S", "script/start.py", module],
        cwd=checkout,
        env={**bare_environment, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LONG) == (b"", b"")
    assert process.returncode == -signal.SIGINT
