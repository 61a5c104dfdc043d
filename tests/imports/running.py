"""Runs `flask import`, and reads what it has stored."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from flask import Flask

from app.infra.database import reading, writing
from app.models import SpotifyUser, User


def json_lines(rows: Iterable[object]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def import_links(app: Flask, lines: str | bytes, *options: str) -> tuple[int, list[str], str]:
    """Import lines. Returns the exit code, the lines of standard output, and standard error."""
    result = app.test_cli_runner().invoke(args=["import", "links", "-", *options], input=lines)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr


def connections(app: Flask) -> dict[str, SpotifyUser]:
    """Return all connections by Spotify id."""
    with app.app_context(), reading() as db:
        return {found.spotify_id: found for found in db.scalars(sa.select(SpotifyUser))}


def verify_email(app: Flask, user: dict[str, Any]) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).where(User.id == user["id"]).values(email_verified_at=datetime.now(UTC)))


def make_due(app: Flask) -> None:
    """Let all planned refreshes and profiles be due now."""
    with app.app_context(), writing() as db:
        past = datetime(2026, 1, 1, tzinfo=UTC)
        db.execute(
            sa.text("UPDATE access_tokens SET due_at = :past WHERE due_at IS NOT NULL"), {"past": past}
        )
        db.execute(
            sa.update(SpotifyUser).where(SpotifyUser.profile_due_at.is_not(None)).values(profile_due_at=past)
        )


def complete_profiles(app: Flask) -> int:
    with app.app_context():
        count: int = app.extensions["backline"].scheduler.complete_imported()
        return count
