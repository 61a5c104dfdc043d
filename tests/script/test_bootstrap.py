"""script/bootstrap: what it says when something is missing, and that it is quick when nothing is."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from script import bootstrap

Machine = Callable[..., str]


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
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    done = run(clone, **bare_environment, **nowhere, PIP_NO_CACHE_DIR="1")
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
