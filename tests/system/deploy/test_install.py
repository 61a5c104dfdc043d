"""deploy/install, in a copy of this machine's root directory that disappears afterwards."""

import os
import subprocess
from collections.abc import Callable
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
    tried = subprocess.run([*NAMESPACES, *mount], capture_output=True, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


@pytest.mark.requirement("K6")
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
    )

    assert done.returncode == 0, done.stdout + done.stderr
    parts = dict(part.split("\n", 1) for part in done.stdout.split("--- ")[1:])
    assert '"username":"ada"' in parts["web"]
    problems = [line for line in parts["doctor"].splitlines() if line.startswith(("warn", "fail"))]
    assert [line[:13] for line in problems] == ["fail  Spotify"]  # there is no network
    assert parts["backup"].splitlines()[1:] == ["200", "Stop gunicorn and the scheduler first."]
    assert parts["restore"].splitlines()[-1] == "200"  # ada is back
    assert "flask db upgrade" in parts["arguments"]
    assert "backline_migrate" not in parts["arguments"]  # all users can read arguments, and so this password
    assert "settings: unchanged" in parts["second installation"]
    permissions = parts["permissions"]
    for path in (".env 600 backline", "migrate.env 600 root", "key.pem 600 root", "backline.conf 640 redis"):
        assert path in permissions
    assert "DROP command denied" in permissions
    assert "NOAUTH" in permissions  # only Backline may use this Redis
    rejected = [line for line in permissions.splitlines() if line.startswith("redis ")]
    assert len(rejected) == 9
    reasons = ("NOPERM", "can't run this command", "can't access", "not allowed from script")
    assert [line for line in rejected if not any(reason in line for reason in reasons)] == []
    assert permissions.count("enabled\n") == 2
    listening = set(parts["listening"].split())
    # nginx, gunicorn, MariaDB, and Redis.
    assert {"0.0.0.0:443", "[::]:443", "127.0.0.1:5000", "127.0.0.1:3306", "127.0.0.1:6379"} <= listening
    assert [at for at in listening if not at.startswith(("127.", "[::1]:")) and not at.endswith(":443")] == []


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
