"""Refreshing ahead of time: the pass, the command, and the scheduler process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.models import AccessToken, GrantState, SpotifyUser, TokenRefresh
from app.spotify.tokens.refresh_pass import RefreshStats
from tests.helpers import secret_scanner
from tests.helpers.children import start_child
from tests.helpers.factories import refresh_due
from tests.helpers.flows import connect, refresh_count, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually, process_environment

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


def test_pass_refreshes_due_connections_once(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    assert refresh_due(app) == RefreshStats(refreshed=4, failed=0)
    assert generations(app) == [1, 1, 1, 1]
    assert refresh_due(app) == RefreshStats()
    assert refresh_count(sandbox) == 4


def test_pass_skips_tokens_valid_beyond_the_lead(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    later = datetime.now(UTC) + timedelta(minutes=30)
    change(app, spotify_user_ids[3], expires_at=later, due_at=later - timedelta(minutes=15))

    assert refresh_due(app).refreshed == 3
    assert generations(app) == [1, 1, 1, 0]


def test_pass_starts_with_token_that_expires_first(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    for minutes, spotify_user_id in enumerate(reversed(spotify_user_ids), 1):
        change(app, spotify_user_id, expires_at=datetime.now(UTC) + timedelta(minutes=minutes))

    refresh_due(app)

    with app.app_context(), reading() as db:
        order = list(db.scalars(sa.select(TokenRefresh.spotify_user_id).order_by(TokenRefresh.id)))
    assert order == spotify_user_ids[::-1]


def test_pass_skips_connections_unused_for_long(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    with app.app_context(), writing() as db:
        long_ago = datetime.now(UTC) - timedelta(days=31)
        db.execute(
            sa.update(SpotifyUser).where(SpotifyUser.id == spotify_user_ids[0]).values(last_used_at=long_ago)
        )

    assert refresh_due(app).refreshed == 3
    assert generations(app) == [0, 1, 1, 1]


def test_pass_skips_ended_grants_and_running_backoffs(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    change(app, spotify_user_ids[0], state=GrantState.REAUTHORIZATION_REQUIRED, due_at=None)
    change(app, spotify_user_ids[1], state=GrantState.SUSPECT, failures=1, not_before=soon, due_at=soon)
    change(app, spotify_user_ids[2], not_before=soon, due_at=soon)

    assert refresh_due(app) == RefreshStats(refreshed=1, failed=0)
    assert generations(app) == [0, 0, 0, 1]


def test_pass_confirms_suspect_grant_when_due(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    change(app, spotify_user_ids[0], state=GrantState.SUSPECT, failures=1, not_before=datetime.now(UTC))

    assert refresh_due(app).refreshed == 4
    with app.app_context(), reading() as db:
        assert set(db.scalars(sa.select(AccessToken.state))) == {GrantState.ACTIVE}


def test_failure_of_one_connection_does_not_affect_others(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    change(app, spotify_user_ids[1], refresh_token=b"damaged")
    sandbox.fault(on="refresh", kind="google_502", person="aiko-87", times=None)

    assert refresh_due(app) == RefreshStats(refreshed=2, failed=2)
    assert generations(app) == [1, 0, 0, 1]


def test_simultaneous_passes_share_the_work(
    app: Flask, spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    sandbox.settings(latency_ms={"token": 200, "api": 0})
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: refresh_due(app), range(2)))

    assert generations(app) == [1, 1, 1, 1]
    assert refresh_count(sandbox) == 4


def flask(env: dict[str, str], *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi:app", *arguments],
        cwd=ROOT,
        env=process_environment(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )
    return done


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_refresh_due_command_makes_one_pass(
    env: dict[str, str], spotify_user_ids: list[int], app: Flask
) -> None:
    done = flask(env, "tokens", "refresh-due")

    assert (done.returncode, done.stdout) == (0, "refreshed 4, failed 0\n")
    assert generations(app) == [1, 1, 1, 1]


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_refresh_due_command_fails_if_a_refresh_failed(
    env: dict[str, str], spotify_user_ids: list[int], sandbox: SandboxClient
) -> None:
    sandbox.fault(on="refresh", kind="google_502", times=None)

    done = flask(env, "tokens", "refresh-due")

    assert (done.returncode, done.stdout) == (1, "refreshed 0, failed 4\n")


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_status_command_counts_connections_by_state(
    env: dict[str, str], spotify_user_ids: list[int], app: Flask
) -> None:
    change(app, spotify_user_ids[0], state=GrantState.SUSPECT)
    change(app, spotify_user_ids[1], expires_at=datetime.now(UTC) - timedelta(minutes=1))

    done = flask(env, "tokens", "status")

    lines = dict(re.split(r"\s{2,}", line) for line in done.stdout.splitlines())
    assert lines["active"] == "3"
    assert lines["suspect"] == "1"
    assert lines["reauthorization_required"] == "0"
    assert lines["active, but expired"] == "1"


@contextmanager
def scheduler(env: dict[str, str], log: Path, **constants: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run a scheduler process with changed constants of its module."""
    changed = (
        "import flask.cli; from app.spotify.tokens import scheduler; "
        f"vars(scheduler).update({constants}); flask.cli.main()"
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
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_three_scheduler_processes_share_work_and_stop_on_signals(
    env: dict[str, str], spotify_user_ids: list[int], app: Flask, sandbox: SandboxClient, tmp_path: Path
) -> None:
    sandbox.settings(latency_ms={"token": 200, "api": 0})
    with (
        scheduler(env, tmp_path / "1") as one,
        scheduler(env, tmp_path / "2") as two,
        scheduler(env, tmp_path / "3") as three,
    ):
        eventually(lambda: generations(app) == [1, 1, 1, 1], timeout=30)
        for log in ("1", "2", "3"):
            eventually(lambda: b"scheduler_started" in (tmp_path / log).read_bytes())  # noqa: B023
        for process, number in ((one, signal.SIGTERM), (two, signal.SIGINT), (three, signal.SIGTERM)):
            os.kill(process.pid, number)
        assert [process.wait(timeout=15) for process in (one, two, three)] == [0, 0, 0]

    assert refresh_count(sandbox) == 4


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_stopping_scheduler_finishes_running_calls(
    env: dict[str, str], spotify_user_ids: list[int], app: Flask, sandbox: SandboxClient, tmp_path: Path
) -> None:
    sandbox.fault(on="refresh", kind="park", times=None)
    with scheduler({**env, "REFRESH_WORKERS": "2"}, tmp_path / "log") as process:
        sandbox.wait_for_held(2, timeout=30)
        os.kill(process.pid, signal.SIGTERM)
        eventually(lambda: b"scheduler_stopping" in (tmp_path / "log").read_bytes())
        sandbox.clear_faults()
        assert process.wait(timeout=15) == 0

    assert sorted(generations(app)) == [0, 0, 1, 1]
    assert refresh_count(sandbox) == 2
