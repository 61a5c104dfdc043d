"""Rotation of the keys that encrypt tokens, while the tokens are in use."""

import base64
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import pytest
import requests
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from app.infra import database
from app.infra.database import reading, writing
from app.infra.encryption import TokenCipher
from app.models import AccessToken, TokenRefresh
from app.services import services
from app.spotify.tokens import key_rotation
from app.spotify.tokens.encryption import decrypt_token
from app.spotify.tokens.key_rotation import RotationProgress, rotate_keys
from tests.conftest import running_app
from tests.helpers.children import start_child
from tests.helpers.factories import create_connections, refresh_due
from tests.helpers.flows import another_tab, connect, refresh_count, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, ROOT, Server, eventually, process_environment
from tests.spotify.tokens.test_scheduler import invoke

pytestmark = pytest.mark.slow

NEW_KEY = base64.b64encode(bytes([7]) * 32).decode()


# Rotates, and hangs in the transaction of the third batch.
HANGING_ROTATION = """
import itertools, time, flask.cli
from app.spotify.tokens import key_rotation

write, batches = key_rotation._write, itertools.count(1)

def write_and_hang(*arguments):
    written = write(*arguments)
    if next(batches) == 3:
        print("hanging", flush=True)
        time.sleep(600)
    return written

key_rotation._write = write_and_hang
flask.cli.main()
"""


@pytest.fixture
def connected(new_client: Callable[[], FlaskClient], sandbox: SandboxClient) -> list[FlaskClient]:
    """Return clients of three people, whose tokens are encrypted with the old key."""
    clients = []
    for person in ("mira_t_42", "jonas.k", "aiko-87"):
        register(client := new_client())
        connect(client, sandbox, person=person)
        clients.append(client)
    return clients


@pytest.fixture
def both_keys(env: dict[str, str]) -> dict[str, str]:
    return {**env, "TOKEN_ENCRYPTION_KEYS": f"{NEW_KEY},{env['TOKEN_ENCRYPTION_KEYS']}"}


def can_use_keys(env: dict[str, str], client: FlaskClient) -> bool:
    """Return whether an app with these keys can return this client's token."""
    with running_app(env) as app:
        return another_tab(client, app).get("/api/spotify/token").status_code == 200


def rotate(env: dict[str, str]) -> Result:
    """Run the command in an app with these keys."""
    with running_app(env) as app:
        return invoke(app, "tokens", "rotate-keys")


@pytest.mark.sqlite_only
def test_old_key_can_be_removed_after_rotation(
    env: dict[str, str], both_keys: dict[str, str], connected: list[FlaskClient]
) -> None:
    only_new = {**env, "TOKEN_ENCRYPTION_KEYS": NEW_KEY}
    assert can_use_keys(both_keys, connected[0])
    assert not can_use_keys(only_new, connected[0])

    first, again = rotate(both_keys), rotate(both_keys)

    assert first.exit_code == 0, first.stderr
    assert first.stdout.startswith("re-encrypted 3, unreadable 0\nAll tokens are encrypted with key ")
    assert again.stdout.startswith("re-encrypted 0, unreadable 0\nAll tokens are encrypted with key ")
    assert all(can_use_keys(only_new, client) for client in connected)


@pytest.mark.sqlite_only
def test_rotation_reports_and_keeps_unreadable_row(
    both_keys: dict[str, str], connected: list[FlaskClient], app: Flask
) -> None:
    with app.app_context(), writing() as db:
        row = db.scalars(sa.select(AccessToken).order_by(AccessToken.id)).first()
        assert row is not None
        assert row.refresh_token is not None
        row.refresh_token = damaged = row.refresh_token[:-1] + bytes([row.refresh_token[-1] ^ 1])
        kept = (row.id, row.access_token, damaged)

    done = rotate(both_keys)

    assert done.exit_code == 1
    assert done.stdout == "re-encrypted 2, unreadable 1\n"
    assert "is still needed: it encrypts 1 rows" in done.stderr
    with app.app_context(), reading() as db:
        row = db.get(AccessToken, kept[0])
        assert row is not None
        assert (row.id, row.access_token, row.refresh_token) == kept


def test_rotation_skips_row_that_a_refresh_has_written(
    both_keys: dict[str, str],
    connected: list[FlaskClient],
    sandbox: SandboxClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rotation reads a row before a refresh and writes after it. The old tokens must not come back."""
    monkeypatch.setattr(key_rotation, "BATCH", 2)
    with running_app(both_keys) as app, app.app_context():
        with reading() as db:
            stale = list(db.scalars(sa.select(AccessToken)))
        with writing() as db:
            db.execute(sa.update(AccessToken).values(access_token=b"newer"))
        reencrypted = {
            row.id: new for row in stale if (new := key_rotation._reencrypt(services().token_cipher, row))
        }
        with writing() as db:
            assert key_rotation._write(db, stale, reencrypted) == 0
        with reading() as db:
            stored = set(db.scalars(sa.select(AccessToken.access_token)))
        assert stored == {b"newer"}
        assert rotate_keys(services().token_cipher, lambda _: None) == RotationProgress(
            total=3, seen=3, reencrypted=0, unreadable=3
        )


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_killed_rotation_of_rows_in_use_loses_nothing(
    both_keys: dict[str, str], env: dict[str, str], app: Flask, sandbox: SandboxClient
) -> None:
    """Rotation is killed half-way and rerun during refreshes. No row is lost, overwritten, or skipped."""
    create_connections(app, sandbox, 600)
    rotating = start_child(
        [sys.executable, "-c", HANGING_ROTATION, "--app", "wsgi:app", "tokens", "rotate-keys"],
        cwd=ROOT,
        env=process_environment(both_keys),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rotating.stdout is not None
    assert rotating.stdout.readline() == "hanging\n"
    rotating.kill()
    rotating.wait()
    with app.app_context():
        old, new = app.extensions["backline"].token_cipher.newest_key_id, key_id(NEW_KEY)
        keys_in_between = key_rotation.keys_in_use()
    assert keys_in_between == {new: 200, old: 400}

    # A process with only the old key, and one with both, refresh tokens in the meantime.
    with ThreadPoolExecutor(2) as pool, running_app({**both_keys, "REFRESH_RATE": "50"}) as newer:
        again = start_flask(both_keys, "tokens", "rotate-keys")
        stopping = threading.Event()
        refreshing = [pool.submit(refresh_due, newer, stopping=stopping)]
        output, errors = again.communicate(timeout=200)
        eventually(lambda: refresh_count(sandbox) > 0)
        stopping.set()
        refreshed = sum(future.result().refreshed for future in refreshing)

    assert again.returncode == 0, errors
    totals = set(map(int, re.findall(r"of (\d+) rows processed", errors)))
    assert max(totals, default=0) <= 400  # rows that were done are skipped; refreshing may have done the rest
    assert f"All tokens are encrypted with key {new}" in output
    assert refreshed > 0
    with running_app({**env, "TOKEN_ENCRYPTION_KEYS": NEW_KEY}) as only_new, only_new.app_context():
        assert key_rotation.keys_in_use() == {new: 600}
        assert key_rotation.missing_keys(services().token_cipher) == {}
        with reading() as db:
            rows = list(db.scalars(sa.select(AccessToken)))
        assert sum(row.generation for row in rows) == refreshed
        for row in rows:
            assert decrypt_token(services().token_cipher, row, "access_token").startswith("BQ")
            assert decrypt_token(services().token_cipher, row, "refresh_token").startswith("AQ")


@pytest.mark.processes
@pytest.mark.sqlite_only
def test_replaced_worker_does_not_check_keys(
    connected: list[FlaskClient], app: Flask, server: Callable[..., AbstractContextManager[Server]]
) -> None:
    """While hosts get a new key one by one, a row may need a key that this host does not have."""
    with server(workers=1) as api:
        with app.app_context(), writing() as db:
            db.execute(sa.update(AccessToken).values(key_id="00000000"))
        lost = api.kill_worker()
        eventually(lambda: len(api.workers) == 1 and lost not in api.workers)
        # Connections that the old worker had accepted are lost with it.
        eventually(lambda: requests.get(f"{api.url}/livez", timeout=LONG).status_code == 200)
        assert "Worker failed to boot" not in api.log


@pytest.mark.sqlite_only
def test_token_commands_run_without_a_key_in_use(env: dict[str, str], connected: list[FlaskClient]) -> None:
    with running_app({**env, "TOKEN_ENCRYPTION_KEYS": NEW_KEY}) as app:
        doctor = invoke(app, "doctor")
        status = invoke(app, "tokens", "status")
        rotation = invoke(app, "tokens", "rotate-keys")

    assert "fail  encryption keys missing for stored tokens" in doctor.stdout
    assert "3 rows: MISSING from TOKEN_ENCRYPTION_KEYS" in status.stdout
    assert rotation.exit_code == 1
    assert "is missing: it encrypts 3 rows" in rotation.stderr


def test_refresh_encrypts_both_tokens_with_newest_key(
    both_keys: dict[str, str], connected: list[FlaskClient], sandbox: SandboxClient
) -> None:
    """The unchanged refresh token is re-encrypted too, so that a row needs only one key."""
    with running_app(both_keys) as newer, newer.app_context():
        with writing() as db:
            past = datetime.now(UTC) - timedelta(minutes=1)
            db.execute(sa.update(AccessToken).values(expires_at=past, due_at=past))
        assert refresh_due(newer).refreshed == 3
        assert key_rotation.keys_in_use() == {key_id(NEW_KEY): 3}


def test_row_without_key_id_counts_by_the_key_in_its_token(
    both_keys: dict[str, str], connected: list[FlaskClient], app: Flask
) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(key_id=None))
    with running_app(both_keys) as newer, newer.app_context():
        old = newer.extensions["backline"].token_cipher.key_ids[1]
        assert key_rotation.keys_in_use() == {old: 3}
        assert rotate_keys(services().token_cipher, lambda _: None) == RotationProgress(
            total=3, seen=3, reencrypted=3
        )
        assert key_rotation.keys_in_use() == {key_id(NEW_KEY): 3}


def key_id(key: str) -> str:
    return TokenCipher([base64.b64decode(key)]).newest_key_id


def start_flask(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return start_child(
        [sys.executable, "-m", "flask", "--app", "wsgi:app", *arguments],
        cwd=ROOT,
        env=process_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.sqlite_only
def test_doctor_says_how_often_to_change_the_key(app: Flask) -> None:
    with app.app_context(), writing() as db:
        assert key_rotation.days_per_key() is None
        now = database.db_now(db)
        attempt = {"spotify_user_id": 1, "grant_id": "g", "generation": 0, "started_at": now}
        db.execute(
            sa.insert(TokenRefresh), [{**attempt, "attempt_id": str(number)} for number in range(3000)]
        )

    report = invoke(app, "doctor").stdout
    assert "change the key every 2,486 days" in report  # 2^31 refreshes / (3,000 in five minutes)
