"""Refreshing tokens while MySQL or Redis is unavailable, loses replies, or has a different clock."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from flask import Flask

from app.infra.database import reading, writing
from app.models import AccessToken, TokenRefresh
from app.services import services
from app.spotify.tokens.service import DecryptedToken
from tests.conftest import cannot_run
from tests.helpers import secret_scanner
from tests.helpers.factories import count_valid, create_connections
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.flows import refresh_count
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, ROOT, Unavailable, eventually, process_environment
from tests.spotify.tokens.test_scheduler import scheduler

# Statements of the transactions whose COMMIT gets no reply.
CLAIM, COMMIT = b"INSERT INTO token_refreshes", b"UPDATE token_refreshes"


on_mariadb = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)


@pytest.fixture
def connection(app: Flask, sandbox: SandboxClient) -> int:
    """A connection whose access token has expired."""
    [spotify_user_id] = create_connections(app, sandbox, 1)
    return spotify_user_id


def get_token(app: Flask, spotify_user_id: int) -> DecryptedToken:
    with app.app_context():
        return services().tokens.access_token_for(spotify_user_id)


def row(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


def outcomes(app: Flask) -> list[str | None]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(TokenRefresh.outcome).order_by(TokenRefresh.id)))


def calls(sandbox: SandboxClient) -> int:
    return refresh_count(sandbox)


@pytest.fixture
def _short_waits_for_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let apps that are made from now on wait for Redis no longer than in production."""
    monkeypatch.setattr("tests.conftest.patient", lambda store: store)


@pytest.mark.usefixtures("_short_waits_for_redis")
@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_refresh_without_redis_calls_spotify_once(
    redis_proxy: FaultProxy,
    app: Flask,
    another_worker: Flask,
    connection: int,
    sandbox: SandboxClient,
    fault: str,
) -> None:
    getattr(redis_proxy, fault)()
    redis_proxy.cut()
    sandbox.settings(rotate=True)
    sandbox.fault(on="refresh", kind="park")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get_token, app, connection)
        sandbox.wait_for_held(1)
        second = pool.submit(get_token, another_worker, connection)
        sandbox.release()
        given = {first.result().access_token, second.result().access_token}

    assert len(given) == 1
    assert calls(sandbox) == 1
    assert outcomes(app) == ["refreshed"]


def test_lock_is_released_if_the_reply_to_its_acquisition_is_lost(
    redis_proxy: FaultProxy, app: Flask, connection: int, sandbox: SandboxClient, redis_url: str
) -> None:
    redis_proxy.drop_reply(b"lock:connection")

    get_token(app, connection)

    redis_proxy.wait_until_dropped()
    assert calls(sandbox) == 1
    with redis.Redis.from_url(redis_url) as direct:
        assert direct.keys("lock:*") == []


def test_lost_reply_to_a_lock_release_is_harmless(
    redis_proxy: FaultProxy, app: Flask, connection: int, redis_url: str
) -> None:
    redis_proxy.drop_reply(b"return redis.call('DEL', KEYS[1])")  # in the script that releases it
    with redis.Redis.from_url(redis_url) as direct:
        assert get_token(app, connection).expires_in > 3500

        redis_proxy.wait_until_dropped()
        assert direct.keys("lock:*") == []
    assert outcomes(app) == ["refreshed"]


@on_mariadb
@pytest.mark.parametrize("transaction", [CLAIM, COMMIT], ids=["claim", "commit"])
@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_refresh_with_a_lost_commit_reply_finds_what_was_stored(
    mysql_proxy: FaultProxy,
    app: Flask,
    connection: int,
    sandbox: SandboxClient,
    transaction: bytes,
    rotate: bool,
) -> None:
    sandbox.settings(rotate=rotate)
    mysql_proxy.drop_reply(b"COMMIT", since=transaction)

    assert get_token(app, connection).expires_in > 3500

    mysql_proxy.wait_until_dropped()
    assert calls(sandbox) == 1
    assert outcomes(app) == ["refreshed"]
    assert (row(app).generation, row(app).lease_until) == (1, None)


@on_mariadb
def test_slow_commit_is_waited_for(
    app: Flask, connection: int, sandbox: SandboxClient, database_url: str
) -> None:
    """The first attempt timed out, but its COMMIT is in progress: the second must see its result."""
    sandbox.fault(on="refresh", kind="park")
    first_attempt = sa.create_engine(database_url)
    with ThreadPoolExecutor(1) as pool, first_attempt.connect() as slow:
        waiting = pool.submit(get_token, app, connection)
        sandbox.wait_for_held(1)
        slow.execute(sa.text("UPDATE token_refreshes SET outcome = 'refreshed', effective = 1"))
        slow.execute(
            sa.text(
                "UPDATE access_tokens SET generation = 1, lease_until = NULL, attempt_id = NULL, "
                "expires_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR"
            )
        )
        sandbox.release()
        eventually(lambda: waits_for_a_lock(app))
        slow.commit()

        assert waiting.result().expires_in > 3500
    first_attempt.dispose()
    with app.app_context(), reading() as db:
        attempt = db.scalars(sa.select(TokenRefresh)).one()
    assert (attempt.outcome, attempt.effective) == ("refreshed", 1)
    assert row(app).generation == 1


def waits_for_a_lock(app: Flask) -> bool:
    with app.app_context(), reading() as db:
        status = db.execute(sa.text("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")).one()
    return int(status[1]) > 0


@on_mariadb
@pytest.mark.parametrize("fault", ["refuse", "cut"])
def test_token_response_is_stored_when_mysql_recovers(
    mysql_proxy: FaultProxy, app: Flask, connection: int, sandbox: SandboxClient, fault: str
) -> None:
    """MySQL fails between Spotify's response and the commit, when a rotated token could be lost."""
    sandbox.settings(rotate=True)
    sandbox.fault(on="refresh", kind="park", after_effect=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get_token, app, connection)
        sandbox.wait_for_held(1)
        getattr(mysql_proxy, fault)()
        sandbox.release()
        eventually(lambda: sandbox.calls(grant_type="refresh_token")[0]["finished_at"])
        mysql_proxy.restore()

        assert waiting.result().expires_in > 3500

    assert row(app).generation == 1
    assert outcomes(app) == ["refreshed"]


@on_mariadb
@pytest.mark.processes
def test_scheduler_does_not_call_spotify_while_mysql_is_unavailable(
    mysql_proxy: FaultProxy, env: dict[str, str], app: Flask, sandbox: SandboxClient, tmp_path: Path
) -> None:
    mysql_proxy.refuse()
    log = tmp_path / "log"
    with scheduler(env, log):
        eventually(lambda: log.read_text().count("refresh_pass_failed") >= 3)
        assert calls(sandbox) == 0

        mysql_proxy.restore()
        create_connections(app, sandbox, 5)

        eventually(lambda: count_valid(app) == 5)
    assert calls(sandbox) == 5
    assert "Traceback" not in log.read_text()


@on_mariadb
@pytest.mark.processes
def test_scheduler_that_cannot_store_a_response_still_stops(
    mysql_proxy: FaultProxy,
    env: dict[str, str],
    app: Flask,
    connection: int,
    sandbox: SandboxClient,
    tmp_path: Path,
) -> None:
    sandbox.fault(on="refresh", kind="park")
    log = tmp_path / "log"
    with scheduler(env, log, STOP_SECONDS=1) as process:
        sandbox.wait_for_held(1)
        mysql_proxy.refuse()
        sandbox.release()
        eventually(lambda: "database_unavailable" in log.read_text())
        os.kill(process.pid, signal.SIGTERM)

        assert process.wait(LONG) == 0
    mysql_proxy.restore()
    # Nothing is lost: after the lease, the next attempt uses the refresh token, which is still valid.
    with app.app_context(), writing() as db:
        past = datetime.now(UTC) - timedelta(seconds=1)
        db.execute(sa.update(AccessToken).values(lease_until=past))
    assert get_token(app, connection).expires_in > 3500
    assert outcomes(app) == [None, "refreshed"]


@pytest.fixture
def run_with_clock_offset() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a `flask` command on a host whose clock is wrong by some minutes."""
    faketime = shutil.which("faketime")
    if faketime is None:
        cannot_run(Unavailable("faketime is not installed: apt-get install faketime"))

    def run(minutes: int, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flask", "--app", "wsgi:app", *arguments]
        done = subprocess.run(
            [str(faketime), "-f", f"{minutes:+}m", *command],
            cwd=ROOT,
            env={**process_environment(env), "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        secret_scanner.record(done.stdout + done.stderr, "the output of flask with a wrong clock")
        return done

    return run


@on_mariadb  # SQLite's clock is the host's own
@pytest.mark.processes
@pytest.mark.requirement("M3")
def test_scheduler_continues_after_its_clock_was_set(
    env: dict[str, str], app: Flask, sandbox: SandboxClient, tmp_path: Path
) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        cannot_run(Unavailable("faketime is not installed: apt-get install faketime"))
    offset, log = tmp_path / "offset", tmp_path / "log"
    offset.write_text("+0")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    quick = {"TICK_SECONDS": 0.3, "CLOCK_CHECK_SECONDS": 0.3}
    with scheduler({**env, **faked}, log, **quick):
        eventually(lambda: "scheduler_started" in log.read_text())
        for number, change in enumerate(("-1h", "+1h"), 1):
            offset.write_text(change)
            eventually(lambda: log.read_text().count("clock_changed") == number)  # noqa: B023
            create_connections(app, sandbox, 1)
            eventually(lambda: count_valid(app) == number)  # noqa: B023


@on_mariadb  # SQLite's clock is the host's own
@pytest.mark.processes
def test_wrong_clock_of_a_host_is_harmless(
    env: dict[str, str],
    app: Flask,
    connection: int,
    sandbox: SandboxClient,
    run_with_clock_offset: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    def change(column: str, seconds: int) -> None:
        with app.app_context(), writing() as db:
            moment = datetime.now(UTC) + timedelta(seconds=seconds)
            db.execute(sa.update(AccessToken).values({column: moment}))

    for number, minutes in enumerate((-10, 10), 1):
        began = time.time()
        change("due_at", -5)
        change("expires_at", -5)
        done = run_with_clock_offset(minutes, env, "tokens", "refresh-due")
        assert done.stdout == "refreshed 1, failed 0\n", done.stderr
        assert began + 3590 < row(app).expires_at.timestamp() < time.time() + 3600
        assert calls(sandbox) == number

    change("due_at", 300)  # according to a clock that is ten minutes ahead, it is due
    not_yet = run_with_clock_offset(10, env, "tokens", "refresh-due")
    assert not_yet.stdout == "refreshed 0, failed 0\n"
