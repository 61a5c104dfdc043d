"""Single steps of deploy/install, and deploy/backup. test_bare_server.py runs all of them."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.servers import ROOT

pytestmark = [pytest.mark.sqlite_only, pytest.mark.processes]


def test_dry_run_changes_nothing_and_says_what_it_would_do(tmp_path: Path) -> None:
    command = [str(ROOT / "deploy/install"), "--dry-run", "--api", "api.example.com"]
    command += ["--app", "https://app.example.com", "--client-id", "0123456789abcdef"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

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


def run_step(folder: Path, step: str) -> "subprocess.CompletedProcess[str]":
    """Run a step of deploy/install in one folder, where nginx's own file is `etc`. Prints its SQL."""
    commands = """
        source <(sed '$d' "$0")  # without the last line, which runs all steps
        folder=$1 ENV_FILE=$1/.env CONFIG=$1 MIGRATE_ENV=$1/migrate.env NGINX_CONF=$1/etc
        run() { :; }
        run_sql() { echo "$1"; }
        ensure_running() { :; }
        write_file() { [[ $3 == "$folder"/* ]] && printf '%s\\n' "$4" >"$3"; }  # nowhere else, whatever fails
        $2
    """
    command = ["bash", "-c", commands, str(ROOT / "deploy/install"), str(folder), step]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def configure_nginx(folder: Path, settings: str) -> "subprocess.CompletedProcess[str]":
    (folder / ".env").write_text(settings)
    return run_step(folder, "configure_nginx")


@pytest.mark.parametrize(
    ("trusted_hosts", "server_name"),
    [
        ("api.example.com", "api.example.com"),
        ("api.example.com, 127.0.0.1", "api.example.com 127.0.0.1"),
        ('"api.example.com,api2.example.com"', "api.example.com api2.example.com"),
        ("api.example.com  # ours", "api.example.com"),
    ],
)
def test_nginx_gets_settings_as_the_app_reads_them(
    tmp_path: Path, trusted_hosts: str, server_name: str
) -> None:
    origins = "CORS_ORIGINS=https://app.example.com, http://[::1]:5173\n"
    done = configure_nginx(tmp_path, f"TRUSTED_HOSTS={trusted_hosts}\nPORT=5001\n{origins}")

    assert done.returncode == 0, done.stderr
    written = (tmp_path / "etc").read_text()
    assert f"server_name {server_name};" in written
    assert written.count("server 127.0.0.1:5001;") == 2  # of both upstreams
    for origin in ("https://app.example.com", "http://[::1]:5173"):
        assert f'\n        "{origin}" "{origin}";\n' in written


@pytest.mark.parametrize("name", ["TRUSTED_HOSTS", "PORT", "CORS_ORIGINS"])
def test_settings_that_the_service_can_change_run_no_command_as_root(tmp_path: Path, name: str) -> None:
    settings = {"TRUSTED_HOSTS": "api.example.com", "PORT": "5000", "CORS_ORIGINS": "https://a.example"}
    settings[name] = f"x;|;e touch {tmp_path}/executed #"
    done = configure_nginx(tmp_path, "\n".join(f"{key}={value}" for key, value in settings.items()))

    assert done.returncode == 1
    assert f"{name} in {tmp_path}/.env has characters" in done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("password", ["", "not'hexadecimal"])
def test_account_of_the_migration_never_gets_an_empty_password(tmp_path: Path, password: str) -> None:
    url = f"mysql+mysqldb://backline_migrate:{password}@localhost/backline"
    (tmp_path / "migrate.env").write_text(f"DATABASE_URL={url}\n")

    done = run_step(tmp_path, "configure_mariadb")

    assert done.returncode == 1
    assert "must consist of letters and digits" in done.stderr
    assert "IDENTIFIED BY" not in done.stdout

    (tmp_path / "migrate.env").write_text(f"DATABASE_URL={url.replace(f':{password}@', ':chosenByHand7@')}\n")
    assert "IDENTIFIED BY 'chosenByHand7'" in run_step(tmp_path, "configure_mariadb").stdout


def test_restore_accepts_the_account_of_the_migration_as_deploy_cluster_has_it() -> None:
    steps = r"^(migrate_url=.*| *export .*)$"
    script = "\n".join(re.findall(steps, (ROOT / "deploy/restore").read_text(), re.MULTILINE))
    command = ["bash", "-euc", f"{script}\nprintenv DATABASE_URL"]
    environment = {"PATH": os.environ["PATH"], "MIGRATE_ENV": str(ROOT / "deploy/cluster/migrate.env")}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.startswith("mysql+mysqldb://backline_migrate:"), done.stderr


@pytest.mark.parametrize("secret", ["0123 ", "0123\nALLOW_INSECURE=redis", "'0123'"])
def test_client_secret_that_is_none_is_not_written(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOTIFY_CLIENT_SECRET", secret)
    done = run_step(tmp_path, "write_settings")

    assert done.returncode == 1
    assert "letters and digits" in done.stderr
    assert not (tmp_path / ".env").exists()


def test_nothing_is_restarted_if_the_migration_fails(tmp_path: Path) -> None:
    commands = """
        source <(sed '$d' "$0")
        has_systemd() { :; }
        run() { echo "$*"; [[ $* != *backline-migrate* ]]; }
        start_services
    """
    script = str(ROOT / "deploy/install")

    done = subprocess.run(["bash", "-c", commands, script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "journalctl -u backline-migrate" in done.stderr
    assert "restart" not in done.stdout


def test_update_that_ended_between_the_copies_of_nginx_conf_can_be_repeated(tmp_path: Path) -> None:
    settings = "TRUSTED_HOSTS=api.example.com\nCORS_ORIGINS=https://app.example.com\n"
    configure_nginx(tmp_path, settings)
    own, copy = tmp_path / "etc", tmp_path / "nginx.conf"
    written = own.read_text()
    assert copy.read_text() == written

    copy.write_text("that of an earlier release")
    assert "was edited" not in configure_nginx(tmp_path, settings).stdout
    assert copy.read_text() == written

    own.write_text("edited")
    assert "was edited" in configure_nginx(tmp_path, settings).stdout
    assert own.read_text() == "edited"


@pytest.fixture
def backup(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs deploy/backup with a database that is empty."""
    (tmp_path / "bin").mkdir()
    dump = tmp_path / "bin" / "mariadb-dump"
    dump.write_text("#!/bin/sh\necho '-- Dump completed'\n")
    dump.chmod(0o755)
    environment = {**os.environ, "PATH": f"{dump.parent}:{os.environ['PATH']}"}
    return lambda *arguments: subprocess.run(
        [str(ROOT / "deploy/backup"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )


def test_only_old_backups_are_deleted(
    tmp_path: Path, backup: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    folder = tmp_path / "my backups"
    for kept in (tmp_path / "my", folder / "backline-before-the-move.sql.gz", folder / "notes.txt"):
        kept.parent.mkdir(exist_ok=True)
        kept.touch()
    for day in (1, 2):
        (folder / f"backline-2020010{day}T000000Z.sql.gz").touch()

    done = backup("--keep", "2", str(folder))

    assert (done.returncode, done.stderr) == (0, "")
    newest = Path(done.stdout.strip())
    expected = {"backline-before-the-move.sql.gz", "notes.txt", "backline-20200102T000000Z.sql.gz"}
    assert {path.name for path in folder.iterdir()} == {*expected, newest.name}
    assert (tmp_path / "my").exists()


@pytest.mark.parametrize("keep", ["0", "-1", "x", "18446744073709551616"])
def test_no_number_of_backups_deletes_all(
    tmp_path: Path, backup: Callable[..., "subprocess.CompletedProcess[str]"], keep: str
) -> None:
    done = backup("--keep", keep, str(tmp_path / "backups"))

    assert done.returncode == 1
    assert "--keep needs a number" in done.stderr
    assert not (tmp_path / "backups").exists()
