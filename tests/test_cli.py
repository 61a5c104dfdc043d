"""The `flask` commands, run in their own processes."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.cli_command import Command
from app.infra.database import reading
from app.models import User
from tests.helpers.flows import PASSWORD, login, register
from tests.helpers.mail_server import running_mailbox
from tests.helpers.programs import flask

pytestmark = pytest.mark.processes


@pytest.mark.sqlite_only
def test_users_create_creates_an_account(env: dict[str, str], client: FlaskClient) -> None:
    done = flask(env, "users", "create", "Ada", "ada@example.com", input=f"{PASSWORD}\n{PASSWORD}\n")

    assert done.returncode == 0, done.stderr
    assert "ada <ada@example.com>" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    assert login(client, "ada").status_code == 200


@pytest.mark.sqlite_only
def test_users_create_reports_invalid_arguments(env: dict[str, str], client: FlaskClient, app: Flask) -> None:
    register(client, "ada")

    taken = flask(env, "users", "create", "ada", "other@example.com", "--password", PASSWORD)
    wrong = flask(env, "users", "create", "a b", "nowhere", "--password", "short")

    assert (taken.returncode, taken.stderr.strip()) == (1, "This username is taken")
    assert wrong.returncode == 1
    assert {line.split(":")[0] for line in wrong.stderr.splitlines()} >= {"password"}
    with app.app_context(), reading() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(User)) == 1


@pytest.mark.sqlite_only
def test_users_create_rejects_a_password_that_is_not_utf8(env: dict[str, str]) -> None:
    done = flask(env, "users", "create", "ada", "ada@example.com", "--password", "a long sentence \udcff")

    assert (done.returncode, done.stdout) == (2, "")
    assert "UTF-8" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_doctor_passes_with_working_servers(env: dict[str, str]) -> None:
    done = flask(env, "doctor")

    assert done.returncode == 0, done.stdout
    assert "fail  " not in done.stdout
    assert "JWTs: signed with key" in done.stdout
    assert "a-secret-key" not in done.stdout


@pytest.mark.sqlite_only
def test_doctor_reports_failures_with_advice(env: dict[str, str]) -> None:
    broken = {"REDIS_URL": "redis://127.0.0.1:1/0", "SPOTIFY_ACCOUNTS_URL": "http://127.0.0.1:1"}
    broken["TRUSTED_PROXIES"] = "2"

    done = flask({**env, **broken}, "doctor")

    assert done.returncode == 1
    assert "REDIS_URL" in done.stdout
    assert "SPOTIFY_ACCOUNTS_URL" in done.stdout
    assert "warn  client addresses: TRUSTED_PROXIES=2" in done.stdout


@pytest.mark.sqlite_only
def test_doctor_reports_an_empty_database(env: dict[str, str], tmp_path: object) -> None:
    done = flask({**env, "DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite3"}, "doctor")

    assert done.returncode == 1
    assert "flask db upgrade" in done.stdout


@pytest.mark.sqlite_only
def test_doctor_reports_invalid_settings_in_its_own_format(env: dict[str, str]) -> None:
    done = flask({**env, "SECRET_KEY": "", "DATABASE_URL": "nonsense"}, "doctor", "--json")

    assert (done.returncode, done.stderr) == (1, "")
    assert [(result["status"], result["summary"].split()[1]) for result in json.loads(done.stdout)] == [
        ("fail", "SECRET_KEY"),
        ("fail", "DATABASE_URL"),
    ]


@pytest.mark.sqlite_only
def test_unusable_database_is_reported_in_one_line(env: dict[str, str], tmp_path: object) -> None:
    done = flask({**env, "DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite3"}, "tokens", "status")

    assert done.returncode == 1
    assert "flask db upgrade" in done.stderr
    assert "Traceback" not in done.stderr


def commands_of(group: click.Group, *names: str) -> Iterator[tuple[list[str], click.Command]]:
    """Yield all commands of a group, with their names."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield [*names, name], command
        if isinstance(command, click.Group):
            yield from commands_of(command, *names, name)


@pytest.mark.sqlite_only
def test_every_command_has_a_help_text_and_reports_errors_in_one_line(app: Flask) -> None:
    runner, found = app.test_cli_runner(), list(commands_of(app.cli))
    assert len(found) > 15
    for names, command in found:
        assert isinstance(command, Command | click.Group), names
        result = runner.invoke(args=[*names, "--help"])
        assert result.exit_code == 0
        assert "Usage:" in result.output


@pytest.mark.sqlite_only
@pytest.mark.parametrize("arguments", ["version", "--help", "import links --help"])
def test_output_that_cannot_be_written_is_reported_in_one_line(env: dict[str, str], arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = flask(env, *arguments.split(), stdout=full)

    assert done.returncode == 1
    assert done.stderr == (
        "Error: The output cannot be written: No space left on device. "
        "What the command has done so far stays.\n"
    )


@pytest.mark.sqlite_only
@pytest.mark.parametrize("arguments", ["import links -", "import your-spotify -"])
def test_closed_standard_input_is_reported_in_one_line(env: dict[str, str], arguments: str) -> None:
    done = flask(env, *arguments.split(), preexec_fn=lambda: os.close(0))

    assert done.returncode in (1, 2)
    assert "tandard input is closed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.sqlite_only
def test_doctor_connects_to_the_mail_server(env: dict[str, str]) -> None:
    with running_mailbox() as (_, url):
        responses = flask({**env, "MAIL_URL": url, "MAIL_FROM": "us@example.com"}, "doctor")
    away = flask({**env, "MAIL_URL": "smtp://u:hunter2hunter2@127.0.0.1:1"}, "doctor")

    assert "ok    mail: connected to 127.0.0.1, sending from us@example.com" in responses.stdout
    assert "fail  mail: cannot connect to 127.0.0.1 (ConnectionRefusedError)" in away.stdout
    assert away.returncode == 1
    assert "hunter2" not in away.stdout + away.stderr


@pytest.mark.sqlite_only
def test_flask_run_says_what_is_missing(env: dict[str, str], tmp_path: Path) -> None:
    needed = {name: env[name] for name in ("SECRET_KEY", "TOKEN_ENCRYPTION_KEYS")}
    missing = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite3",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "SPOTIFY_ACCOUNTS_URL": "http://127.0.0.1:1",
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that the command ends
        port = str(taken.getsockname()[1])
        done = flask({"FLASK_SKIP_DOTENV": "1", **needed, **missing}, "run", "--port", port)

    lines = [line for line in done.stderr.splitlines() if line.startswith("Not ready: ")]
    remedies = ("flask db upgrade", "REDIS_URL", "python -m sandbox", "script/server")
    assert len(lines) == len(remedies)
    assert all(remedy in line for line, remedy in zip(lines, remedies, strict=True))
