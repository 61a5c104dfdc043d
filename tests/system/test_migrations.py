"""Migrations on both databases, in both directions."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask

from app.infra.database import reading, writing
from app.models import AccessToken, SpotifyUser, User
from app.spotify.tokens.key_rotation import keys_in_use
from tests.helpers.factories import create_connections
from tests.helpers.sandbox_client import SandboxClient
from tests.spotify.tokens.test_scheduler import flask

pytestmark = pytest.mark.processes

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
        "id user_id spotify_id account_id display_name image_url product country "
        "created_at updated_at last_used_at"
    ),
    "access_tokens": (
        "id spotify_user_id grant_id generation state access_token refresh_token spare_refresh_token key_id "
        "scope expires_at authorized_at due_at attempt_id lease_until not_before failures refreshed_at "
        "ended_at reminded_days created_at updated_at"
    ),
    "outgoing_mails": (
        "id message_id kind user_id recipient arguments attempts due_at expires_at created_at"
    ),
    "breakers": "name opened_at closed_at probe_at successes",
    "token_refreshes": (
        "id spotify_user_id grant_id generation attempt_id outcome effective started_at finished_at"
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


def test_migrations_can_be_reverted_and_repeated(env: dict[str, str]) -> None:
    down = flask(env, "db", "downgrade", "base")
    empty = columns(env["DATABASE_URL"])
    up = flask(env, "db", "upgrade")

    assert down.returncode == 0, down.stderr
    assert up.returncode == 0, up.stderr
    assert set(empty) == {"alembic_version"}
    assert set(columns(env["DATABASE_URL"])) == {*DESIGNED, "alembic_version"}
    assert flask(env, "db", "upgrade").returncode == 0


def test_two_deployments_can_migrate_concurrently(env: dict[str, str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    flask(env, "db", "downgrade", "base")
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: flask(env, "db", "upgrade"), range(2)))

    assert [run.returncode for run in done] == [0, 0], done[0].stderr + done[1].stderr
    assert set(columns(env["DATABASE_URL"])) == {*DESIGNED, "alembic_version"}


def test_rows_survive_reverted_and_repeated_migrations(
    env: dict[str, str], app: Flask, sandbox: SandboxClient
) -> None:
    """Some tokens are erased, but the older schema does not allow empty ones."""
    erased, suspect, active = create_connections(app, sandbox, 3)
    with app.app_context(), writing() as db:
        # Recreating the table of users would delete this user's connection.
        user = User(username="ada", email="ada@example.com", password_hash="x")
        other = User(username="bob", email="bob@example.com", password_hash="x", session_epoch=-(2**63))
        db.add_all([user, other])
        db.flush()
        db.execute(sa.update(SpotifyUser).where(SpotifyUser.id == active).values(user_id=user.id))
        ended = {"state": "reauthorization_required", "due_at": None, "ended_at": datetime.now(UTC)}
        empty = {"access_token": None, "refresh_token": None, "key_id": None}
        row = sa.update(AccessToken).where(AccessToken.spotify_user_id == erased)
        db.execute(row.values(**ended, **empty))
        waits = {"state": "suspect", "failures": 1, "not_before": datetime.now(UTC) + timedelta(minutes=15)}
        db.execute(sa.update(AccessToken).where(AccessToken.spotify_user_id == suspect).values(**waits))
    with app.app_context():
        before = keys_in_use()

    assert flask(env, "db", "downgrade", "0001").returncode == 0
    assert flask(env, "db", "upgrade").returncode == 0

    with app.app_context(), reading() as db:
        assert keys_in_use() == before
        rows = {row.spotify_user_id: row for row in db.scalars(sa.select(AccessToken))}
        epochs = set(db.scalars(sa.select(User.session_epoch)))
    assert len(epochs) == 2
    assert 0 not in epochs  # the value in the older schema
    assert rows[erased].refresh_token is None
    assert (rows[erased].due_at, rows[erased].ended_at is not None) == (None, True)
    assert rows[suspect].due_at == rows[suspect].not_before
    assert rows[active].due_at == rows[active].expires_at - timedelta(minutes=15)
