"""Factories for many connections, passing time, and counts of what is stored."""

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from app.infra import database
from app.infra.column_types import UTCDateTime
from app.infra.database import db, reading, writing
from app.infra.encryption import TokenCipher
from app.models import AccessToken, SpotifyApp, SpotifyUser, User
from app.spotify.applications.encryption import encrypt_secret
from app.spotify.tokens.encryption import decrypt_token, encrypt_tokens
from app.spotify.tokens.refresh_pass import RefreshStats
from tests.helpers.sandbox_client import SandboxClient

# The names of the columns that hold times, by table.
MOMENTS = {
    table.name: [column.name for column in table.columns if isinstance(column.type, UTCDateTime)]
    for table in db.metadata.sorted_tables
}


def create_connections(
    app: Flask, sandbox: SandboxClient, count: int, *, expired_for: float = 60
) -> list[int]:
    """Store connections of this many people, with access tokens that expired one after another.

    The last one expired `expired_for` seconds ago. Returns the connections' ids in the order of expiry.
    """
    people, cipher = sandbox.seed(count), app.extensions["backline"].token_cipher
    with app.app_context(), writing() as session:
        return store_connections(session, cipher, people, expired_for=expired_for)


def store_connections(
    session: Session, cipher: TokenCipher, people: Sequence[Mapping[str, str]], *, expired_for: float = 60
) -> list[int]:
    """Do the same for people that the sandbox has created."""
    now = database.db_now(session)
    connections = [SpotifyUser(spotify_id=person["id"], account_id=person["account_id"]) for person in people]
    session.add_all(connections)
    session.flush()
    for number, (connection, person) in enumerate(zip(connections, people, strict=True)):
        expires_at = now - timedelta(seconds=expired_for) - timedelta(milliseconds=len(people) - number)
        grant_id = f"{connection.id:032x}"
        grant = AccessToken(spotify_user_id=connection.id, grant_id=grant_id)
        session.add(
            AccessToken(
                spotify_user_id=connection.id,
                grant_id=grant_id,
                scope=person["scope"],
                expires_at=expires_at,
                due_at=expires_at - timedelta(minutes=15),
                authorized_at=expires_at - timedelta(hours=1),
                **encrypt_tokens(cipher, grant, person["access_token"], person["refresh_token"]),
            )
        )
    return [connection.id for connection in connections]


def give_own_application(
    app: Flask, spotify_user_id: int, client_id: str, client_secret: str | None = None
) -> int:
    """Let a connection look as if an owner had made it with an application of their own. Returns its id."""
    cipher = app.extensions["backline"].token_cipher
    with app.app_context(), writing() as session:
        connection = session.get_one(SpotifyUser, spotify_user_id)
        name = f"owner-{spotify_user_id}"
        owner = User(username=name, email=f"{name}@example.com", password_hash="")
        session.add(owner)
        session.flush()
        application = SpotifyApp(owner_id=owner.id, client_id=client_id)
        session.add(application)
        session.flush()
        for column, value in encrypt_secret(cipher, application.id, client_secret).items():
            setattr(application, column, value)
        connection.user_id, connection.spotify_app_id = owner.id, application.id
        grant = connection.token
        tokens = [decrypt_token(cipher, grant, column) for column in ("access_token", "refresh_token")]
        grant.client_id = client_id
        for column, value in encrypt_tokens(cipher, grant, *tokens).items():
            setattr(grant, column, value)
        return application.id


def refresh_due(app: Flask, stopping: threading.Event | None = None) -> RefreshStats:
    """Make one pass of the scheduler."""
    stats: RefreshStats = app.extensions["backline"].scheduler.refresh_due(stopping=stopping)
    return stats


def run_maintenance(app: Flask) -> dict[str, int]:
    """Run every maintenance task once. Returns the number of rows that each has handled."""
    with app.app_context():
        counts: dict[str, int] = app.extensions["backline"].maintenance.run()
        return counts


def advance_time(app: Flask, sandbox: SandboxClient, seconds: float) -> None:
    """Advance the sandbox's clock, and move every stored time into the past by as much."""
    sandbox.advance(seconds)
    with app.app_context(), writing() as session:
        is_sqlite = session.connection().dialect.name == "sqlite"
        for table, columns in MOMENTS.items():
            session.execute(sa.text(f"UPDATE {table} SET {_earlier(columns, seconds, is_sqlite=is_sqlite)}"))


def _earlier(columns: list[str], seconds: float, *, is_sqlite: bool) -> str:
    """Return what to set in an UPDATE."""
    earlier = (
        "{0} = strftime('%Y-%m-%d %H:%M:%f000', {0}, '-{1} seconds')"
        if is_sqlite
        else "{0} = {0} - INTERVAL {1} SECOND"
    )
    return ", ".join(earlier.format(name, seconds) for name in columns)


def count_by_state(app: Flask) -> dict[str, int]:
    """Return the number of grants in each state."""
    with app.app_context(), reading() as session:
        counted = sa.select(AccessToken.state, sa.func.count()).group_by(AccessToken.state)
        return {row[0]: row[1] for row in session.execute(counted)}


def count_valid(app: Flask) -> int:
    """Return the number of access tokens that are valid."""
    with app.app_context(), reading() as session:
        is_valid = AccessToken.expires_at > database.db_now(session)
        return session.execute(sa.select(sa.func.count()).where(is_valid)).scalar_one()
