"""Times that were written while a clock was ahead are ignored."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, Breaker, SpotifyUser, TokenRefresh
from app.models.token_refresh import Outcome
from app.spotify.tokens import breaker, refresh_queue
from app.spotify.tokens.breaker_rules import Reason
from app.spotify.tokens.refresh_pass import RefreshStats
from tests.helpers.factories import advance_time, create_connections, refresh_due, run_maintenance
from tests.helpers.flows import connect, refresh_count
from tests.helpers.redis_cluster import direct_client
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.slow

# All conditions together run on each database. Single conditions, and decisions in Python, run on one.
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CENTURY = 36_500 * DAY


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with direct_client(redis_url) as client:
        yield client


def now(app: Flask) -> datetime:
    with app.app_context():
        return database.read_db_now()


def change(app: Flask, model: type[database.Base], **values: object) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(model).values(**values))


def row(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


@pytest.mark.parametrize("ahead", [DAY + HOUR, CENTURY], ids=["a-day", "a-century"])
@pytest.mark.parametrize(
    "columns",
    [
        ("lease_until",),
        ("not_before",),
        ("expires_at",),
        ("refreshed_at",),
        ("refreshed_at", "expires_at"),
        ("authorized_at", "expires_at"),
    ],
    ids="+".join,
)
@SQLITE
def test_connection_with_times_far_ahead_is_refreshed(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, columns: tuple[str, ...], ahead: timedelta
) -> None:
    connect(client, sandbox)
    advance_time(app, sandbox, 3700)
    change(app, AccessToken, attempt_id="a" * 32, **dict.fromkeys(columns, now(app) + ahead))

    response = client.get("/api/spotify/token")

    assert response.status_code == 200
    assert 3500 < response.json["expires_in"] <= 3600
    assert (row(app).generation, refresh_count(sandbox)) == (1, 1)
    assert row(app).expires_at < now(app) + HOUR
    assert client.get("/api/spotify/token").status_code == 200
    assert refresh_count(sandbox) == 1


@SQLITE
def test_lease_and_backoff_hold_for_plausible_times(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    advance_time(app, sandbox, 3700)
    change(app, AccessToken, not_before=now(app) + DAY)
    assert client.get("/api/spotify/token").status_code == 503

    change(app, AccessToken, not_before=None, attempt_id="a" * 32, lease_until=now(app) + 30 * SECOND)
    assert refresh_due(app) == RefreshStats()

    assert refresh_count(sandbox) == 0


def test_scheduler_refreshes_connection_with_times_far_ahead(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 3)
    columns = ("due_at", "not_before", "lease_until", "refreshed_at", "expires_at")
    change(app, AccessToken, attempt_id="a" * 32, **dict.fromkeys(columns, now(app) + CENTURY))

    with app.app_context():
        assert refresh_queue.count_due() == 3
    assert refresh_due(app).refreshed == 3
    assert refresh_due(app) == RefreshStats()


@SQLITE
@pytest.mark.parametrize("ahead", [2 * HOUR, CENTURY], ids=["two-hours", "a-century"])
@pytest.mark.parametrize("reason", [Reason.OUTAGE, Reason.MISCONFIGURED])
def test_breaker_opened_by_a_clock_ahead_is_probed_and_closes(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, reason: Reason, ahead: timedelta
) -> None:
    connect(client, sandbox)
    advance_time(app, sandbox, 3700)
    with app.app_context(), writing() as db:
        later = database.db_now(db) + ahead
        db.add(Breaker(name=reason, opened_at=later, closed_at=None, probe_at=later))

    assert client.get("/api/spotify/token").status_code == 200

    with app.app_context():
        assert breaker.open_breakers() == []


def test_breaker_closed_by_a_clock_ahead_can_open(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    spotify_user_ids = create_connections(app, sandbox, 12)
    with app.app_context(), writing() as db:
        later = database.db_now(db) + CENTURY
        db.add(Breaker(name=Reason.OUTAGE, opened_at=later, closed_at=later, probe_at=later))
    sandbox.fault(on="refresh", kind="json_500", times=None)

    refresh_due(app)

    with app.app_context():
        assert [found.name for found in breaker.open_breakers()] == [Reason.OUTAGE]
    assert len(spotify_user_ids) == 12


def test_attempts_far_ahead_do_not_open_breaker(app: Flask, sandbox: SandboxClient) -> None:
    spotify_user_ids = create_connections(app, sandbox, 1)
    with app.app_context(), writing() as db:
        later = database.db_now(db) + CENTURY
        for number in range(20):
            attempt = {"attempt_id": f"{number:032}", "started_at": later, "finished_at": later}
            where = {"spotify_user_id": 1000 + number, "grant_id": "g", "generation": 0}
            db.add(TokenRefresh(**where, **attempt, outcome=Outcome.INVALID_GRANT))
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=1)

    refresh_due(app)

    with app.app_context():
        assert breaker.open_breakers() == []
    assert row(app).state == "suspect"
    assert len(spotify_user_ids) == 1


def test_maintenance_corrects_events_dated_ahead(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 1)
    later, before = now(app) + CENTURY, now(app)
    change(app, SpotifyUser, last_used_at=later)
    change(app, AccessToken, authorized_at=later, refreshed_at=before, ended_at=later)
    with app.app_context(), writing() as db:
        where = {"spotify_user_id": 1, "grant_id": "g", "generation": 0, "attempt_id": "a"}
        db.add(TokenRefresh(**where, started_at=later))

    with app.app_context():
        run_maintenance(app)

    with app.app_context(), reading() as db:
        columns = (SpotifyUser.last_used_at, AccessToken.authorized_at, AccessToken.ended_at)
        moments: list[Any] = [*db.execute(sa.select(*columns).join(AccessToken)).one()]
        moments += db.scalars(sa.select(TokenRefresh.started_at))
    assert all(before - SECOND <= moment <= now(app) for moment in moments)


@SQLITE
def test_use_is_recorded_despite_last_use_dated_ahead(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    change(app, SpotifyUser, last_used_at=now(app) + CENTURY)

    client.get("/api/spotify/authorize")

    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(SpotifyUser.last_used_at)).one() <= now(app) + SECOND


@SQLITE
def test_rejected_token_is_replaced_despite_refresh_dated_ahead(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    spotify_user_id, tokens = row(app).spotify_user_id, app.extensions["backline"].tokens
    with app.app_context():
        rejected = tokens.access_token_for(spotify_user_id)
        change(app, AccessToken, refreshed_at=now(app) + CENTURY)

        assert tokens.replace_rejected(rejected, spotify_user_id).version != rejected.version
    assert refresh_count(sandbox) == 1
