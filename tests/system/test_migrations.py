"""`flask db upgrade`: the schema it creates, its lock, and what it says. See also test_upgrades.py."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import MakeApp
from tests.helpers.children import start_child
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.programs import flask
from tests.helpers.schemas import empty_database, upgrade
from tests.helpers.servers import ROOT, eventually, process_environment

pytestmark = pytest.mark.processes

mariadb_only = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)

DESIGNED = {
    "users": (
        "id username email email_address email_verified_at pending_email pending_email_address "
        "password_hash session_epoch disabled_at created_at updated_at"
    ),
    "one_time_tokens": "id user_id purpose token_hash email email_address expires_at",
    "personal_access_tokens": (
        "id user_id token_hash name rights session_epoch expires_at created_at last_used_at last_used_ip"
    ),
    "spotify_users": (
        "id user_id spotify_app_id spotify_id account_id display_name image_url product country "
        "sign_in_since created_at updated_at last_used_at profile_due_at"
    ),
    "access_tokens": (
        "id spotify_user_id grant_id generation client_id state access_token refresh_token "
        "spare_refresh_token key_id scope expires_at authorized_at undated_grant_id due_at attempt_id "
        "lease_until not_before failures refreshed_at ended_at reminded_days created_at updated_at"
    ),
    "spotify_apps": (
        "id owner_id client_id client_secret key_id state paused_until failures failing_since created_at "
        "updated_at"
    ),
    "outgoing_mails": (
        "id message_id kind user_id recipient arguments attempts due_at expires_at created_at"
    ),
    "breakers": "name opened_at closed_at probe_at successes",
    "token_refreshes": (
        "id spotify_user_id grant_id generation spotify_app_id attempt_id outcome effective started_at "
        "finished_at"
    ),
}


def columns(url: str) -> dict[str, set[str]]:
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found = {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


def test_migrated_schema_matches_the_models(env: dict[str, str]) -> None:
    found = columns(env["DATABASE_URL"])

    assert {table: set(names.split()) for table, names in DESIGNED.items()} == {
        table: names for table, names in found.items() if table != "alembic_version"
    }
    done = flask(env, "db", "check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def empty(env: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of an app whose database has no tables."""
    with empty_database(env["DATABASE_URL"], tmp_path) as url:
        yield {**env, "DATABASE_URL": url}


def test_two_deployments_can_migrate_concurrently(empty: dict[str, str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: flask(empty, "db", "upgrade"), range(2)))

    assert [run.returncode for run in done] == [0, 0], done[0].stderr + done[1].stderr
    assert set(columns(empty["DATABASE_URL"])) == {*DESIGNED, "alembic_version"}


@mariadb_only
@pytest.mark.requirement("M7")
def test_killed_migration_keeps_others_out_until_the_server_notices_and_can_be_resumed(
    empty: dict[str, str], mysql_proxy: FaultProxy
) -> None:
    engine = sa.create_engine(empty["DATABASE_URL"], poolclass=sa.NullPool)

    def is_locked() -> bool:
        with engine.connect() as connection:
            return bool(connection.scalar(sa.text("SELECT IS_USED_LOCK(CONCAT('backline.', DATABASE()))")))

    for statement in (b"ADD COLUMN due_at", b"CREATE TABLE personal_access_tokens"):
        mysql_proxy.hold("up", when=statement)
        command = [sys.executable, "-m", "flask", "--app", "wsgi:app", "db", "upgrade"]
        process = start_child(command, cwd=ROOT, env=process_environment(empty), stderr=subprocess.DEVNULL)
        mysql_proxy.wait_until_held(timeout=60)
        assert is_locked()
        process.kill()
        process.wait()
        mysql_proxy.restore()
        eventually(lambda: not is_locked())

    done = flask(empty, "db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert set(columns(empty["DATABASE_URL"])) == {*DESIGNED, "alembic_version"}


@pytest.mark.sqlite_only
@pytest.mark.requirement("M7")
def test_release_that_was_rolled_back_accepts_the_newer_schema(
    empty: dict[str, str], make_app: MakeApp
) -> None:
    upgrade(make_app(DATABASE_URL=empty["DATABASE_URL"]))
    with sa.create_engine(empty["DATABASE_URL"]).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    done = flask(empty, "db", "upgrade")  # systemd does that before it starts the API

    assert (done.returncode, done.stderr) == (
        0,
        "The schema is newer than this release, which works with it. Nothing was changed.\n",
    )
    assert "ok    schema: 9999\n" in flask(empty, "doctor").stdout  # deploy/install ends with it


@mariadb_only
def test_migration_of_a_table_in_use_says_what_to_do(empty: dict[str, str], make_app: MakeApp) -> None:
    app = make_app(DATABASE_URL=empty["DATABASE_URL"])
    upgrade(app, "0006")
    engine = sa.create_engine(empty["DATABASE_URL"], poolclass=sa.NullPool)
    with engine.connect() as backup:
        backup.execute(sa.text("SELECT * FROM users"))  # locks the table's definition until the end
        with pytest.raises(SystemExit) as stopped:
            upgrade(app)

    assert "Lock wait timeout exceeded" in str(stopped.value)
    assert "ALTER TABLE users ADD COLUMN email_address" in str(stopped.value)
    assert "SHOW FULL PROCESSLIST" in str(stopped.value)
    upgrade(app)


@mariadb_only
def test_migration_changes_no_table_of_another_program(empty: dict[str, str], make_app: MakeApp) -> None:
    app = make_app(DATABASE_URL=empty["DATABASE_URL"])
    engine = sa.create_engine(empty["DATABASE_URL"], poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE users (id INTEGER PRIMARY KEY, shoe_size INTEGER)"))

    with pytest.raises(SystemExit, match="Table 'users' already exists"):
        upgrade(app)

    assert columns(empty["DATABASE_URL"])["users"] == {"id", "shoe_size"}
