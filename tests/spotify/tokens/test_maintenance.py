"""Hourly maintenance: reminders, and deletion of what is no longer needed."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import db_now, reading, writing
from app.models import AccessToken, GrantState, SpotifyUser, TokenRefresh, User
from app.models.access_token import six_months_after
from app.models.token_refresh import Outcome
from app.services import services
from tests.helpers.factories import advance_time, create_connections, refresh_due, run_maintenance
from tests.helpers.flows import connect, register
from tests.helpers.mail_server import Mailbox
from tests.helpers.route_matrix import wait_for_background_work
from tests.helpers.sandbox_client import SandboxClient

pytestmark = pytest.mark.slow

DAY = 86_400


@pytest.fixture
def connected(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    register(client, "ada")
    connect(client, sandbox)
    wait_for_background_work(client.application)  # otherwise a mail could expire when time advances
    return client


def row(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


def run_tasks(app: Flask) -> dict[str, int]:
    with app.app_context():
        met = run_maintenance(app)
    # These are tested in tests/auth/test_email_tokens.py, tests/auth/test_personal_access_tokens.py, and
    # tests/mail/test_outbox.py.
    for elsewhere in ("prune_one_time_tokens", "prune_personal_access_tokens", "drop_expired_mails"):
        del met[elsewhere]
    return {part: count for part, count in met.items() if count}


def six_months_before(end: datetime) -> datetime:
    days = (timedelta(days=days) for days in range(180, 190))
    return next(end - length for length in days if six_months_after(end - length) <= end)


def end(app: Flask) -> None:
    with app.app_context(), writing() as db:
        now = datetime.now(UTC)
        values = {"state": GrantState.REAUTHORIZATION_REQUIRED, "ended_at": now, "due_at": None}
        db.execute(sa.update(AccessToken).values(values))


def test_tokens_of_ended_grant_are_erased_after_a_week(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    end(app)
    advance_time(app, sandbox, 7 * DAY - 60)
    assert run_tasks(app) == {}
    assert row(app).refresh_token is not None

    advance_time(app, sandbox, 61)

    assert run_tasks(app) == {"erase_ended": 1}
    assert run_tasks(app) == {}
    erased = row(app)
    assert (erased.access_token, erased.refresh_token, erased.key_id) == (None, None, None)


@pytest.mark.sqlite_only
def test_erased_connection_can_be_authorized_again(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    end(app)
    advance_time(app, sandbox, 8 * DAY)
    run_tasks(app)
    # A week without a visit ends the session too.
    connected.post("/api/login", json={"login": "ada", "password": "a long sentence is best"})

    assert connected.get("/api/spotify").json["status"] == "reauthorization_required"
    assert connected.get("/api/spotify/token").status_code == 409
    assert connect(connected, sandbox)["status"] == "connected"
    assert connected.get("/api/spotify/token").status_code == 200
    assert row(app).ended_at is None


def add_history(app: Flask, outcome: Outcome | None, *days: float) -> None:
    """Add attempts that began so many days ago."""
    with app.app_context(), writing() as db:
        for number in days:
            began = datetime.now(UTC) - timedelta(days=number)
            effective = 1 if outcome is Outcome.REFRESHED else None
            of = {"spotify_user_id": 1, "grant_id": "g", "generation": int(number * 10)}
            attempt = {"attempt_id": uuid.uuid4().hex, "outcome": outcome, "effective": effective}
            db.add(TokenRefresh(**of, **attempt, started_at=began))


def history(app: Flask, outcome: Outcome | None) -> set[int]:
    """Return tenths of days."""
    with app.app_context(), reading() as db:
        return set(db.scalars(sa.select(TokenRefresh.generation).where(TokenRefresh.outcome == outcome)))


def test_history_is_kept_for_a_month_but_successes_for_three_days(app: Flask, sandbox: SandboxClient) -> None:
    add_history(app, Outcome.REFRESHED, 1, 2.9, 3.1, 29, 31)
    for other in (Outcome.INVALID_GRANT, Outcome.SUPERSEDED, None):
        add_history(app, other, 1, 3.1, 29, 31)

    assert run_tasks(app) == {"prune_successes": 2, "prune_history": 4}

    assert history(app, Outcome.REFRESHED) == {10, 29}
    for other in (Outcome.INVALID_GRANT, Outcome.SUPERSEDED, None):
        assert history(app, other) == {10, 31, 290}


def test_pruning_continues_where_it_was_rolled_back(app: Flask, sandbox: SandboxClient) -> None:
    add_history(app, Outcome.REFRESHED, 3.5, 3.4)
    with app.app_context(), writing() as db:
        assert services().maintenance.prune_successes(db, db_now(db)) == 2
        db.rollback()

    assert run_tasks(app) == {"prune_successes": 2}
    add_history(app, Outcome.REFRESHED, 3.3, 3.2)
    assert run_tasks(app) == {"prune_successes": 2}


@pytest.mark.sqlite_only
def test_history_is_pruned_in_small_transactions(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 600)
    advance_time(app, sandbox, 31 * DAY)

    assert run_tasks(app) == {"prune_visitors": 600}


def test_unreachable_connections_of_visitors_are_deleted(
    app: Flask, new_client: Callable[[], FlaskClient], sandbox: SandboxClient
) -> None:
    connect(new_client(), sandbox, person="jonas.k")  # a visitor's
    register(owner := new_client(), "ada")
    connect(owner, sandbox, person="mira_t_42")
    advance_time(app, sandbox, 30 * DAY - 60)
    assert run_tasks(app) == {}

    advance_time(app, sandbox, 61)

    assert run_tasks(app) == {"prune_visitors": 1}
    with app.app_context(), reading() as db:
        assert list(db.scalars(sa.select(SpotifyUser.spotify_id))) == ["mira_t_42"]
        assert len(db.scalars(sa.select(AccessToken)).all()) == 1


@pytest.mark.sqlite_only
def test_each_reminder_is_recorded_once(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = []
    for days_left in (31, 29, 20, 7, 6, 2, 1, 0.5):
        with app.app_context(), writing() as db:
            end = datetime.now(UTC) + timedelta(days=days_left) - timedelta(minutes=1)
            db.execute(sa.update(AccessToken).values(authorized_at=six_months_before(end)))
        recorded.append((days_left, run_tasks(app).get("remind", 0), row(app).reminded_days))

    assert [days for days, was_sent, _ in recorded if was_sent] == [29, 7, 1]
    assert [days for *_, days in recorded] == [None, 30, 30, 7, 7, 7, 1, 1]
    assert [record.days for record in caplog.records if record.message == "spotify_grant_ends_soon"] == [  # type: ignore[attr-defined]
        30,
        7,
        1,
    ]


def test_unused_grant_ends_and_is_erased_after_six_months(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """An idle grant is not refreshed, so Spotify never says that it has ended."""
    advance_time(app, sandbox, 31 * DAY)
    refresh_due(app)
    assert row(app).due_at is None

    advance_time(app, sandbox, 160 * DAY)
    assert run_tasks(app)["end_unused"] == 1
    assert row(app).state == GrantState.REAUTHORIZATION_REQUIRED
    advance_time(app, sandbox, 8 * DAY)
    assert run_tasks(app) == {"erase_ended": 1}


@pytest.mark.sqlite_only
def test_idle_suspect_grant_stays_in_queue(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    advance_time(app, sandbox, 29 * DAY + DAY // 2)
    sandbox.revoke("mira_t_42")
    refresh_due(app)
    for _ in range(2):
        advance_time(app, sandbox, DAY)
        refresh_due(app)

    assert row(app).state == GrantState.REAUTHORIZATION_REQUIRED


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.sqlite_only
def test_reminder_is_mailed_to_verified_address_only(
    mailbox: Mailbox, connected: FlaskClient, app: Flask, verified: bool
) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(User).values(email_verified_at=datetime.now(UTC) if verified else None))
        authorized_at = six_months_before(datetime.now(UTC) + timedelta(days=6))
        db.execute(sa.update(AccessToken).values(authorized_at=authorized_at))

    run_tasks(app)
    run_tasks(app)
    wait_for_background_work(app)

    reminders = mailbox.to("ada@example.com", "renew your Spotify connection")
    assert len(reminders) == (1 if verified else 0)
    expires_at = row(app).reauthorize_by
    assert expires_at is not None
    date = f"{expires_at:%B} {expires_at.day}, {expires_at.year}"
    assert not reminders or f"Your connection expires on {date}." in reminders[0].get_content()


@pytest.mark.sqlite_only
def test_new_consent_resets_reminders(connected: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    with app.app_context(), writing() as db:
        values = {"reminded_days": 1, "state": GrantState.REAUTHORIZATION_REQUIRED}
        db.execute(sa.update(AccessToken).values(values))

    connect(connected, sandbox)

    assert row(app).reminded_days is None
