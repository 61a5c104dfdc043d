"""Links by the thousand, and time that passes at once: for tests of what happens to many, or later."""

import threading
from datetime import timedelta

import sqlalchemy as sa
from flask import Flask

from app.infra import database
from app.infra.database import db, reading, writing
from app.models import AccessToken, SpotifyUser
from app.spotify.tokens.encryption import encrypt_tokens
from app.spotify.tokens.refresh_pass import RefreshStats
from tests.helpers.sandbox_client import SandboxClient


def link_many(app: Flask, sandbox: SandboxClient, count: int, *, expired_for: float = 60) -> list[int]:
    """Store links of so many people, whose tokens ran out one after another, the last just so long ago.

    Returns the links' ids, soonest deadline first.
    """
    people, cipher = sandbox.seed(count), app.extensions["backline"].token_cipher
    with app.app_context(), writing() as session:
        now = database.db_now(session)
        links = [SpotifyUser(spotify_id=person["id"], account_id=person["account_id"]) for person in people]
        session.add_all(links)
        session.flush()
        for number, (link, person) in enumerate(zip(links, people, strict=True)):
            expires_at = now - timedelta(seconds=expired_for) - timedelta(milliseconds=count - number)
            grant_id = f"{link.id:032x}"
            session.add(
                AccessToken(
                    spotify_user_id=link.id,
                    grant_id=grant_id,
                    scope=person["scope"],
                    expires_at=expires_at,
                    due_at=expires_at - timedelta(minutes=15),
                    authorized_at=expires_at - timedelta(hours=1),
                    **encrypt_tokens(
                        cipher, link.id, grant_id, person["access_token"], person["refresh_token"]
                    ),
                )
            )
        return [link.id for link in links]


def refresh_due(app: Flask, stopping: threading.Event | None = None) -> RefreshStats:
    """Make one pass of the scheduler."""
    stats: RefreshStats = app.extensions["backline"].scheduler.refresh_due(stopping=stopping)
    return stats


def run_maintenance(app: Flask) -> dict[str, int]:
    """Run every maintenance task once. Returns the number of rows that each has handled."""
    with app.app_context():
        counts: dict[str, int] = app.extensions["backline"].maintenance.run()
        return counts


def let_pass(app: Flask, sandbox: SandboxClient, seconds: float) -> None:
    """Let time pass, for the database and for Spotify: every moment that is stored moves into the past."""
    sandbox.advance(seconds)
    with app.app_context():
        metadata = sa.MetaData()
        metadata.reflect(db.engine)
        with writing() as session:
            for table in metadata.tables.values():
                moments = [column for column in table.columns if isinstance(column.type, sa.DateTime)]
                if moments:
                    _shift(session.connection(), table, moments, seconds)


def _shift(
    connection: sa.Connection, table: sa.Table, moments: list[sa.Column[object]], seconds: float
) -> None:
    if connection.dialect.name == "sqlite":
        earlier = "strftime('%Y-%m-%d %H:%M:%f000', {name}, '-{seconds} seconds')"
    else:
        earlier = "{name} - INTERVAL {seconds} SECOND"
    values = {column.name: sa.text(earlier.format(name=column.name, seconds=seconds)) for column in moments}
    connection.execute(table.update().values(values))


def states(app: Flask) -> dict[str, int]:
    """How many grants there are of each state."""
    with app.app_context(), reading() as session:
        counted = sa.select(AccessToken.state, sa.func.count()).group_by(AccessToken.state)
        return {row[0]: row[1] for row in session.execute(counted)}


def fresh(app: Flask) -> int:
    """How many access tokens live."""
    with app.app_context(), reading() as session:
        living = AccessToken.expires_at > database.db_now(session)
        return session.execute(sa.select(sa.func.count()).where(living)).scalar_one()
