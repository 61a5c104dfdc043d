"""Databases at any revision of the schema, and rows for all of their tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask_migrate
import sqlalchemy as sa
from flask import Flask

from app.infra import database
from app.models import AccessToken
from app.spotify.applications.encryption import encrypt_secret
from app.spotify.tokens.encryption import encrypt_tokens
from tests.conftest import CHEAP_HASHER
from tests.helpers.flows import PASSWORD
from tests.helpers.servers import ROOT

Rows = dict[str, list[dict[str, Any]]]

_MIGRATIONS = str(ROOT / "migrations")


@contextmanager
def empty_database(server: str, folder: Path) -> Iterator[str]:
    """Create a database without tables: on the server of this URL, or in a file. Yields its URL."""
    if server.startswith("sqlite"):
        yield f"sqlite:///{folder}/upgraded.sqlite3"
        return
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE OR REPLACE DATABASE upgraded CHARACTER SET utf8mb4"))
    yield engine.url.set(database="upgraded").render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sa.text("DROP DATABASE upgraded"))


def upgrade(app: Flask, revision: str = "head") -> None:
    """Run `flask db upgrade` in this process."""
    database.init_migrations(app)
    with app.app_context():
        flask_migrate.upgrade(_MIGRATIONS, revision)


def downgrade(app: Flask, revision: str) -> None:
    """Run `flask db downgrade` in this process."""
    database.init_migrations(app)
    with app.app_context():
        flask_migrate.downgrade(_MIGRATIONS, revision)


def check(app: Flask) -> None:
    """Run `flask db check` in this process.

    Raises:
        SystemExit: The schema differs from the models.
    """
    database.init_migrations(app)
    with app.app_context():
        flask_migrate.check(_MIGRATIONS)


def reflect(engine: sa.Engine) -> sa.MetaData:
    """Return the tables as they are now, without Alembic's own."""
    found = sa.MetaData()
    found.reflect(engine, only=lambda name, _: name != "alembic_version")
    return found


def make_rows(app: Flask, key: int, people: list[dict[str, Any]]) -> Rows:
    """Return rows of two people for every table of the newest schema: common values, and unusual ones.

    `key` makes them unique. `people` are two of the sandbox's.
    """
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    times = {"created_at": now.replace(microsecond=1), "updated_at": now.replace(microsecond=999_999)}
    plain, odd = 2 * key, 2 * key + 1
    cipher = app.extensions["backline"].token_cipher
    sealed = [
        encrypt_tokens(
            cipher,
            AccessToken(spotify_user_id=row_id, grant_id=f"{row_id:032x}"),
            person["access_token"],
            person["refresh_token"],
        )
        for row_id, person in zip((plain, odd), people, strict=True)
    ]
    users = [
        {"id": plain, "username": f"ada{key}", "email": f"ada{key}@example.com", "session_epoch": key},
        {
            "id": odd,
            "username": f"{key:04}" + "\U0001f3b5" * 60,
            "email": f"{key:04}" + "ä" * 54 + "@" + "ü" * 195,
            "email_address": "Ä" * 254,
            "email_verified_at": now,
            "pending_email": "p" * 254,
            "pending_email_address": "P" * 254,
            "disabled_at": now,
            "session_epoch": 2**31 - 1,
        },
    ]
    connections = [
        {"id": plain, "user_id": plain, "spotify_id": people[0]["id"], "account_id": people[0]["account_id"]},
        {
            "id": odd,
            "user_id": None,
            "spotify_app_id": odd,
            "spotify_id": f"{key} blanks  ",
            "account_id": None,
            "display_name": "\U0001f3b5" * 255,
            "image_url": "https://i.example/" + "x" * 2030,
        },
    ]
    grants = [
        {"generation": 0, "state": "active", "failures": 0, "due_at": now + timedelta(minutes=45)},
        {
            "generation": 2**31 - 1,
            "state": "suspect",
            "failures": 9,
            "due_at": now + timedelta(minutes=15),
            "not_before": now + timedelta(minutes=15),
            "attempt_id": "a" * 32,
            "lease_until": now,
            "reminded_days": 30,
            "refreshed_at": now,
        },
    ]
    applications = [
        {"id": plain, "owner_id": plain, "client_id": f"{key:032x}", "state": "active", "failures": 0},
        {
            "id": odd,
            "owner_id": odd,
            "client_id": "blanks  " + "ä" * 247,
            "state": "rate_limited",
            "paused_until": now,
            "failures": 2**31 - 1,
            "failing_since": now,
            **encrypt_secret(cipher, odd, "secret"),
        },
    ]
    return {
        "spotify_apps": [{**times, **row} for row in applications],
        "users": [{"password_hash": CHEAP_HASHER.hash(PASSWORD), **times, **row} for row in users],
        "spotify_users": [{"last_used_at": now, **times, **row} for row in connections],
        "access_tokens": [
            {
                "id": row_id,
                "spotify_user_id": row_id,
                "grant_id": f"{row_id:032x}",
                "scope": people[0]["scope"],
                "expires_at": now + timedelta(hours=1),
                "authorized_at": now,
                **times,
                **tokens,
                **grant,
            }
            for row_id, tokens, grant in zip((plain, odd), sealed, grants, strict=True)
        ],
        "token_refreshes": [
            {
                "id": row_id,
                "spotify_user_id": plain,
                "grant_id": f"{plain:032x}",
                "generation": 1,
                "attempt_id": f"{row_id:032x}",
                "outcome": outcome,
                "effective": effective,
                "started_at": now,
            }
            for row_id, outcome, effective in [(plain, "refreshed", 1), (odd, None, None)]
        ],
        "one_time_tokens": [
            {
                "id": row_id,
                "user_id": row_id,
                "purpose": "password_reset",
                "token_hash": f"{row_id:064x}",
                "email": "ä" * 254,
                "email_address": "Ä" * 254,
                "expires_at": now,
            }
            for row_id in (plain, odd)
        ],
        "outgoing_mails": [
            {
                "id": row_id,
                "message_id": f"{row_id:032x}",
                "kind": "email_changed",
                "user_id": user_id,
                "recipient": "ä" * 320,
                "arguments": "ä" * 1000,
                "attempts": 2**31 - 1,
                "due_at": now,
                "expires_at": now,
                "created_at": now,
            }
            for row_id, user_id in [(plain, plain), (odd, None)]
        ],
        "breakers": [
            {"name": f"breaker {key}", "opened_at": now, "closed_at": None, "probe_at": now, "successes": 4}
        ],
        "personal_access_tokens": [
            {
                "id": row_id,
                "user_id": row_id,
                "token_hash": f"{row_id:064x}",
                "name": "\U0001f3b5" * 100,
                "rights": "spotify:read",
                "session_epoch": -(2**63),
                "expires_at": now,
                "created_at": now,
                "last_used_ip": "2001:db8::1",
            }
            for row_id in (plain, odd)
        ],
    }


def insert(engine: sa.Engine, rows: Rows, schema: sa.MetaData) -> Rows:
    """Insert what fits a schema, as a release that knows only that schema does. Returns the inserted rows."""
    inserted: Rows = {}
    with engine.begin() as connection:
        for table in schema.sorted_tables:
            inserted[table.name] = [
                {name: value for name, value in row.items() if name in table.columns}
                for row in rows[table.name]
            ]
            for row in inserted[table.name]:
                connection.execute(sa.insert(table).values(row))
    return inserted
