"""script/bootstrap: what it says when something is missing, and that it is quick when nothing is."""

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from script import bootstrap

Machine = Callable[..., str]

# An index that nobody can reach: what wrongly begins to install ends at once.
NOWHERE = {
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


def test_nothing_to_do_takes_no_time_and_says_nothing(
    checkout: Path, bare_environment: dict[str, str]
) -> None:
    began = time.monotonic()
    done = run(checkout, "--dev", **bare_environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 1


def test_an_old_python_is_named_with_what_to_install(clone: Path, machine: Machine) -> None:
    path = machine(python3="echo 3.9.18; exit 1", python3_11="exit 127", python="exit 127")
    done = run(clone, PATH=path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "python3 is 3.9.18" in done.stderr
    assert "apt-get install python3" in done.stderr


def test_a_missing_compiler_is_named_with_the_command_for_this_machine(clone: Path, machine: Machine) -> None:
    done = run(clone, "--mysql", PATH=machine(pkg_config="exit 0", apt_get="exit 0"))
    assert done.returncode == 1
    assert "- a C compiler\n" in done.stderr
    assert "- pkg-config" not in done.stderr
    assert "apt-get install gcc\n" in done.stderr
    assert "dnf" not in done.stderr
    assert not (clone / ".pipenv/venv").exists(), "it must say so before it spends a minute"


def test_missing_headers_are_named_alone(clone: Path, machine: Machine) -> None:
    done = run(clone, "--mysql", PATH=machine(cc="exit 0", pkg_config="exit 1", dnf="exit 0"))
    assert "libmariadb-dev" in done.stderr
    assert "C compiler" not in done.stderr
    assert "dnf install mariadb-connector-c-devel\n" in done.stderr


def test_all_commands_are_shown_where_no_package_manager_is_known(clone: Path, machine: Machine) -> None:
    done = run(clone, "--mysql", PATH=machine())
    assert "apt-get install gcc pkg-config" in done.stderr
    assert "dnf install gcc pkgconf-pkg-config" in done.stderr
    assert "xcode-select --install; brew install pkgconf" in done.stderr


@pytest.mark.parametrize(
    "line", ['DATABASE_URL="mysql+mysqldb://a:b@c/d"', "export DATABASE_URL = mysql://a@b/c"]
)
def test_a_mysql_url_in_dotenv_asks_for_mysql(clone: Path, machine: Machine, line: str) -> None:
    (clone / ".env").write_text(f"APP_ENV=development\n{line}\n")
    done = run(clone, PATH=machine(pkg_config="exit 0"))
    assert "- a C compiler\n" in done.stderr


def test_an_unreachable_index_is_explained(clone: Path, bare_environment: dict[str, str]) -> None:
    done = run(clone, **bare_environment, **NOWHERE)
    assert done.returncode == 1
    assert "package index cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_venv_whose_installation_was_interrupted_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "UNFINISHED", tmp_path / "unfinished")
    (tmp_path / ".venv").mkdir()
    (tmp_path / "unfinished").touch()
    bootstrap.discard_broken_venv()
    assert not (tmp_path / ".venv").exists()


def test_packages_that_have_other_reasons_to_fail_show_the_end_of_the_log() -> None:
    told = bootstrap.explain_failure("Collecting x\n" * 30 + "error: command 'cc' failed\n")
    assert "error: command 'cc' failed" in told
    assert len(told.splitlines()) < 20


def test_package_with_another_hash_is_explained() -> None:
    pip = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    assert "is not the file that was locked" in bootstrap.explain_failure(pip)


def test_one_that_had_to_wait_uses_what_the_other_has_installed(
    clone: Path, bare_environment: dict[str, str]
) -> None:
    (clone / ".pipenv").mkdir()
    with (clone / ".pipenv/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            ["script/bootstrap", "--dev"],
            cwd=clone,
            env={**bare_environment, **NOWHERE, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as second:
            assert second.stdout is not None
            assert "waiting for it" in second.stdout.readline()
            (clone / ".venv").symlink_to(bootstrap.VENV)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert second.stdout.read() == ""
    assert second.returncode == 0
    assert (clone / ".venv").is_symlink(), "it must not remove what the first one runs on"


def test_one_that_began_before_there_was_a_venv_uses_it_without_having_waited(
    checkout: Path, bare_environment: dict[str, str]
) -> None:
    command = [BASE_PYTHON, "script/bootstrap.py", "--dev"]
    environ = {**bare_environment, **NOWHERE}
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (checkout / ".venv").is_symlink()


@pytest.mark.parametrize("body", [f'exec {BASE_PYTHON} "$@"', "exit 1"], ids=["not its own", "does not run"])
def test_a_venv_with_a_python_that_is_no_good_is_made_anew(
    clone: Path, bare_environment: dict[str, str], body: str
) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/.stamp").write_text("{}")
    (clone / ".venv/bin/python").write_text(f"#!/bin/sh\n{body}\n")
    (clone / ".venv/bin/python").chmod(0o755)
    (clone / ".pipenv/venv/bin").mkdir(parents=True)
    (clone / ".pipenv/venv/bin/python").symlink_to("/bin/false")
    requirements = (clone / "script/pipenv.txt").read_bytes()
    (clone / ".pipenv/venv/.stamp").write_text(hashlib.sha256(requirements).hexdigest())
    done = subprocess.run(
        [BASE_PYTHON, "script/bootstrap.py"],
        cwd=clone,
        env={**bare_environment, **NOWHERE},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Making .venv anew: its Python does not run" in done.stdout
    assert "pip or pipenv failed" in done.stderr


def test_pipenv_without_a_hash_is_not_installed(
    clone: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "pipenv-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pipenv.py", "")
        wheel.writestr("pipenv-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pipenv\nVersion: 1.0\n")
        wheel.writestr("pipenv-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("pipenv-1.0.dist-info/RECORD", "")
    (clone / "script/pipenv.txt").write_text("pipenv==1.0\n")

    done = run(clone, **bare_environment, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))

    assert done.returncode == 1
    assert "--hash=sha256:" in done.stderr
    assert not list(clone.glob(".pipenv/venv/lib/*/site-packages/pipenv*"))


@pytest.mark.parametrize("content", ["A=b\n".encode("utf-16"), "NAME=Zo\xeb\n".encode("latin-1"), None])
def test_a_dotenv_that_cannot_be_read_is_left_to_the_app_to_name(
    checkout: Path, bare_environment: dict[str, str], content: bytes | None
) -> None:
    if content is None:
        (checkout / ".env").mkdir()
    else:
        (checkout / ".env").write_bytes(content)
    done = run(checkout, "--dev", **bare_environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_byte_order_mark_does_not_hide_a_mysql_url(clone: Path, machine: Machine) -> None:
    (clone / ".env").write_text("DATABASE_URL=mysql://a@b/c\n", encoding="utf-8-sig")
    assert "- a C compiler\n" in run(clone, PATH=machine(pkg_config="exit 0")).stderr


def test_a_checkout_that_cannot_be_written_is_named_with_its_owner(
    clone: Path, bare_environment: dict[str, str]
) -> None:
    (clone / ".pipenv").touch()  # stands in for whatever makes writing fail
    done = run(clone, **bare_environment)
    assert done.returncode == 1
    assert re.search(r"\.pipenv.*: File exists", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.fixture
def of_another_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout whose files this process, for the time of the test, may read but not write."""
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


@pytest.mark.usefixtures("of_another_user")
def test_a_user_who_may_not_write_is_told_whose_the_checkout_is() -> None:
    with pytest.raises(bootstrap.BootstrapError) as error, bootstrap.at_work():
        pass
    assert ".pipenv/lock: Permission denied" in str(error.value)
    assert "chown" in str(error.value)


@pytest.mark.parametrize("module", ["script.bootstrap", "script.server"])
def test_ctrl_c_while_python_is_still_importing_says_nothing(
    checkout: Path, bare_environment: dict[str, str], module: str
) -> None:
    """Slow imports stand in for a slow disk: what is not imported yet never ends."""
    stall = "import sys, time; print('importing', flush=True); time.sleep(30)"
    folder = checkout / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(stall)
    with subprocess.Popen(
        [".venv/bin/python", "-S", "script/start.py", module],
        cwd=checkout,
        env={**bare_environment, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""
