"""Refreshing ahead of time: the pass, the command, and the scheduler process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.models import AccessToken, GrantState
from app.spotify.tokens.refresh_pass import RefreshStats
from tests.helpers import secret_scanner
from tests.helpers.children import start_child
from tests.helpers.factories import refresh_due
from tests.helpers.flows import connect, refresh_count, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, eventually, process_environment

# With one thread, the order of calls is the order of the queue.
pytestmark = [pytest.mark.slow, pytest.mark.settings(REFRESH_WORKERS="1")]

ROOT = Path(__file__).resolve().parents[3]
PEOPLE = ["mira_t_42", "jonas.k", "aiko-87", "31xk4zq7w5m2"]


@pytest.fixture
def spotify_user_ids(new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient) -> list[int]:
    """Return the ids of four connections, whose tokens expire in 2, 4, 6, and 8 minutes."""
    for person in PEOPLE:
        register(client := new_client())
        connect(client, sandbox, person=person)
    with app.app_context(), writing() as db:
        rows = list(db.scalars(sa.select(AccessToken).order_by(AccessToken.id)))
        for number, row in enumerate(rows, 1):
            row.expires_at = datetime.now(UTC) + timedelta(minutes=2 * number)
            row.refreshed_at = row.expires_at - timedelta(hours=1)
            row.due_at = datetime.now(UTC)
        return [row.spotify_user_id for row in rows]


def change(app: Flask, spotify_user_id: int, **values: object) -> None:
    with app.app_context(), writing() as db:
        db.execute(
            sa.update(AccessToken).where(AccessToken.spotify_user_id == spotify_user_id).values(**values)
        )


def generations(app: Flask) -> list[int]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(AccessToken.generation).order_by(AccessToken.id)))


def expire_tokens(app: Flask) -> None:
    with app.app_context(), writing() as db:
        now = datetime.now(UTC)
        db.execute(sa.update(AccessToken).values(expires_at=now, due_at=now))


def invoke(app: Flask, *arguments: str) -> Result:
    """Run a command in this process."""
    return app.test_cli_runner().invoke(args=arguments)


def test_pass_refreshes_due_connections_once(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    assert refresh_due(app) == RefreshStats(refreshed=4, failed=0)
    assert generations(app) == [1, 1, 1, 1]
    assert refresh_due(app) == RefreshStats()
    assert refresh_count(sandbox) == 4


@pytest.mark.sqlite_only
def test_pass_skips_tokens_valid_beyond_the_lead(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    later = datetime.now(UTC) + timedelta(minutes=30)
    change(app, spotify_user_ids[3], expires_at=later, due_at=later - timedelta(minutes=15))

    assert refresh_due(app).refreshed == 3
    assert generations(app) == [1, 1, 1, 0]


def test_pass_skips_ended_grants_and_running_backoffs(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    change(app, spotify_user_ids[0], state=GrantState.REAUTHORIZATION_REQUIRED, due_at=None)
    change(app, spotify_user_ids[1], state=GrantState.SUSPECT, failures=1, not_before=soon, due_at=soon)
    change(app, spotify_user_ids[2], not_before=soon, due_at=soon)

    assert refresh_due(app) == RefreshStats(refreshed=1, failed=0)
    assert generations(app) == [0, 0, 0, 1]


@pytest.mark.sqlite_only
def test_pass_confirms_suspect_grant_when_due(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    change(app, spotify_user_ids[0], state=GrantState.SUSPECT, failures=1, not_before=datetime.now(UTC))

    assert refresh_due(app).refreshed == 4
    with app.app_context(), reading() as db:
        assert set(db.scalars(sa.select(AccessToken.state))) == {GrantState.ACTIVE}


@pytest.mark.sqlite_only
def test_refresh_due_command_makes_one_pass(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    done = invoke(app, "tokens", "refresh-due")

    assert (done.exit_code, done.stdout) == (0, "refreshed 4, failed 0\n")
    assert generations(app) == [1, 1, 1, 1]

    expire_tokens(app)
    sandbox.fault(on="refresh", kind="google_502", times=None)
    failed = invoke(app, "tokens", "refresh-due")
    assert (failed.exit_code, failed.stdout) == (1, "refreshed 0, failed 4\n")


@pytest.mark.sqlite_only
def test_status_command_counts_connections_by_state(app: Flask, spotify_user_ids: list[int]) -> None:
    change(app, spotify_user_ids[0], state=GrantState.SUSPECT)
    change(app, spotify_user_ids[1], expires_at=datetime.now(UTC) - timedelta(minutes=1))

    done = invoke(app, "tokens", "status")

    lines = dict(re.split(r"\s{2,}", line) for line in done.stdout.splitlines())
    assert lines["active"] == "3"
    assert lines["suspect"] == "1"
    assert lines["reauthorization_required"] == "0"
    assert lines["active, but expired"] == "1"


@contextmanager
def scheduler(env: dict[str, str], log: Path, **constants: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run a scheduler process with longer time limits, and changed constants of its module.

    A pass ends if Redis or MySQL does not respond in time, as may happen on a busy machine.
    """
    changed = (
        "import flask.cli, pytest; from tests.helpers import time_limits; "
        "from app.spotify.tokens import scheduler; "
        f"time_limits.lengthen(pytest.MonkeyPatch()); vars(scheduler).update({constants}); flask.cli.main()"
    )
    with log.open("wb") as output:
        process = start_child(
            [sys.executable, "-c", changed, "--app", "wsgi:app", "scheduler"],
            cwd=ROOT,
            env=process_environment({**env, "LOG_LEVEL": "INFO"}),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        secret_scanner.record(log.read_bytes(), "the scheduler's log")


@pytest.mark.processes
@pytest.mark.requirement("M2")
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_three_scheduler_processes_share_work_and_stop_on_signals(
    env: dict[str, str], spotify_user_ids: list[int], app: Flask, sandbox: SandboxClient, tmp_path: Path
) -> None:
    sandbox.settings(latency_ms={"token": 200, "api": 0})
    with (
        scheduler(env, tmp_path / "1", TICK_SECONDS=0.5) as one,
        scheduler(env, tmp_path / "2", TICK_SECONDS=0.5) as two,
        scheduler(env, tmp_path / "3", TICK_SECONDS=0.5) as three,
    ):
        eventually(lambda: generations(app) == [1, 1, 1, 1])
        for log in ("1", "2", "3"):
            eventually(lambda: b"scheduler_started" in (tmp_path / log).read_bytes())  # noqa: B023
        for process, number in ((one, signal.SIGTERM), (two, signal.SIGINT), (three, signal.SIGTERM)):
            os.kill(process.pid, number)
        assert [process.wait(LONG) for process in (one, two, three)] == [0, 0, 0]

    assert refresh_count(sandbox) == 4


@pytest.mark.processes
@pytest.mark.requirement("M2")
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_stopping_scheduler_finishes_running_calls(
    env: dict[str, str], spotify_user_ids: list[int], app: Flask, sandbox: SandboxClient, tmp_path: Path
) -> None:
    sandbox.fault(on="refresh", kind="park", times=None)
    with scheduler({**env, "REFRESH_WORKERS": "2"}, tmp_path / "log", STOP_SECONDS=LONG) as process:
        sandbox.wait_for_held(2)
        os.kill(process.pid, signal.SIGTERM)
        eventually(lambda: b"scheduler_stopping" in (tmp_path / "log").read_bytes())
        sandbox.clear_faults()
        assert process.wait(LONG) == 0

    assert sorted(generations(app)) == [0, 0, 1, 1]
    assert refresh_count(sandbox) == 2
