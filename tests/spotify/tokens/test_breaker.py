"""The breaker stops refreshes while all of them fail."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import reading, writing
from app.models import AccessToken, Breaker, GrantState, TokenRefresh
from app.models.token_refresh import Outcome
from app.spotify.clients.application import ApplicationKind
from app.spotify.tokens import breaker
from app.spotify.tokens.breaker_rules import Reason
from app.spotify.tokens.refresh_pass import RefreshStats
from tests.helpers.factories import advance_time, count_by_state, count_valid, create_connections, refresh_due
from tests.helpers.flows import connect, refresh_count
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

# These need many connections, which SQLite is not meant for.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("database_url", ["mariadb"], indirect=True),
    pytest.mark.settings(REFRESH_RATE="2000", REFRESH_WORKERS="8"),
]

MINUTE = 60


def is_open(app: Flask) -> list[str]:
    with app.app_context():
        return [found.name for found in breaker.open_breakers()]


def rows(app: Flask) -> list[AccessToken]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(AccessToken).order_by(AccessToken.id)))


def test_breaker_protects_all_grants_from_false_revocations(app: Flask, sandbox: SandboxClient) -> None:
    """Spotify rejects all of 100 connections for half an hour."""
    create_connections(app, sandbox, 100)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=None)
    refresh_due(app)
    asked_first = refresh_count(sandbox)
    for _ in range(30):
        assert count_by_state(app) == {GrantState.ACTIVE: 100}
        advance_time(app, sandbox, MINUTE)
        refresh_due(app)

    assert asked_first < 50  # ten to open it, and those that were running by then
    assert refresh_count(sandbox) <= asked_first + 31  # one a minute
    sandbox.clear_faults()
    minutes = 0
    while count_valid(app) < 100:
        advance_time(app, sandbox, MINUTE)
        refresh_due(app)
        minutes += 1
        assert minutes <= 10
    assert count_by_state(app) == {GrantState.ACTIVE: 100}
    assert count_valid(app) == 100
    assert is_open(app) == []


def test_opening_undoes_marks_made_before_the_threshold(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 20)
    [first, second, *_] = rows(app)
    with app.app_context(), writing() as db:
        # One is suspect for a day, and one was confirmed once. The false rejections seem to confirm both.
        twice = {"state": GrantState.SUSPECT, "failures": 2}
        db.execute(sa.update(AccessToken).where(AccessToken.id == first.id).values(twice))
        once = {"state": GrantState.SUSPECT, "failures": 1}
        db.execute(sa.update(AccessToken).where(AccessToken.id == second.id).values(once))
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=None)
    refresh_due(app)

    assert is_open(app) == [Reason.REVOCATIONS]
    found = rows(app)
    assert [(row.state, row.failures) for row in found[:2]] == [
        (GrantState.SUSPECT, 2),
        (GrantState.SUSPECT, 1),
    ]
    assert {row.state for row in found[2:]} == {GrantState.ACTIVE}
    assert all(row.ended_at is None and row.refresh_token for row in found)


def test_few_revocations_among_many_connections_do_not_open_breaker(
    app: Flask, sandbox: SandboxClient
) -> None:
    """Twelve of 300 are 4%: these become suspect, and the others are refreshed."""
    create_connections(app, sandbox, 300)
    for number in range(1, 13):
        sandbox.revoke(f"seed-{number * 24:05}")

    done = refresh_due(app)

    assert is_open(app) == []
    assert done == RefreshStats(refreshed=288, failed=12)
    assert count_by_state(app) == {GrantState.ACTIVE: 288, GrantState.SUSPECT: 12}


def test_nine_revoked_connections_do_not_open_breaker(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 9)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=None)

    refresh_due(app)

    assert is_open(app) == []
    assert count_by_state(app) == {GrantState.SUSPECT: 9}


def test_many_aged_grants_end_without_opening_breaker(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 30)
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(authorized_at=datetime.now(UTC) - timedelta(days=190)))
    sandbox.advance(190 * 86_400)

    refresh_due(app)

    assert is_open(app) == []
    assert count_by_state(app) == {GrantState.REAUTHORIZATION_REQUIRED: 30}
    with app.app_context(), reading() as db:
        assert set(db.scalars(sa.select(TokenRefresh.outcome))) == {"aged"}


def test_revocation_after_closing_marks_grant(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 30)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=None)
    refresh_due(app)
    sandbox.clear_faults()
    sandbox.revoke("seed-00007")
    for _ in range(14):
        advance_time(app, sandbox, MINUTE)
        refresh_due(app)

    assert is_open(app) == []
    assert count_by_state(app) == {GrantState.ACTIVE: 29, GrantState.SUSPECT: 1}


def test_failed_probe_resets_success_count(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 30)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=None)
    refresh_due(app)
    sandbox.clear_faults()
    for successes in (1, 2, 3, 4):
        advance_time(app, sandbox, MINUTE)
        refresh_due(app)
        assert stored_breaker(app, Reason.REVOCATIONS).successes == successes
    sandbox.fault(on="refresh", kind="false_invalid_grant")
    advance_time(app, sandbox, MINUTE)
    refresh_due(app)

    assert stored_breaker(app, Reason.REVOCATIONS).successes == 0
    assert is_open(app) == [Reason.REVOCATIONS]


def stored_breaker(app: Flask, reason: Reason) -> Breaker:
    with app.app_context(), reading() as db:
        return db.get_one(Breaker, reason)


def test_wrong_secret_is_probed_once_a_minute_and_marks_no_grant(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 50)
    before = [(row.state, row.generation, row.refresh_token) for row in rows(app)]
    sandbox.fault(on="refresh", kind="invalid_client", times=None)
    refresh_due(app)
    at_first = refresh_count(sandbox)
    for _ in range(3):
        refresh_due(app)
        advance_time(app, sandbox, MINUTE)
        refresh_due(app)

    assert at_first <= 8  # what its threads were running
    assert refresh_count(sandbox) == at_first + 3
    assert is_open(app) == [Reason.MISCONFIGURED]
    assert [(row.state, row.generation, row.refresh_token) for row in rows(app)] == before
    sandbox.clear_faults()
    advance_time(app, sandbox, MINUTE)
    refresh_due(app)  # the probe
    # A pass skips what is claimed or locked when it starts; the next one takes it.
    eventually(lambda: refresh_due(app) and count_valid(app) == 50)


def test_outage_ends_with_first_successful_probe(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 80)
    sandbox.fault(on="refresh", kind="google_502", times=None)
    refresh_due(app)
    at_first, started = refresh_count(sandbox), time.monotonic()
    for _ in range(20):
        advance_time(app, sandbox, 5)
        refresh_due(app)

    assert is_open(app) == [Reason.OUTAGE]
    assert at_first < 30
    # One every five seconds, while the passes themselves take time, too.
    assert refresh_count(sandbox) <= at_first + 20 + (time.monotonic() - started) / 5
    sandbox.clear_faults()
    advance_time(app, sandbox, 5)
    refresh_due(app)
    refresh_due(app)
    assert count_valid(app) == 80
    assert count_by_state(app) == {GrantState.ACTIVE: 80}


def test_one_failing_connection_does_not_open_breaker(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 40)
    for number in range(1, 16):
        sandbox.fault(on="refresh", kind="google_502", person=f"seed-{2 * number:05}", times=None)

    done = refresh_due(app)

    assert is_open(app) == []
    assert done == RefreshStats(refreshed=25, failed=15)


def test_retry_after_pauses_all_connections(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 30)
    sandbox.fault(on="refresh", kind="rate_limited", retry_after=1200, times=None)
    refresh_due(app)
    at_first = refresh_count(sandbox)
    sandbox.clear_faults()
    for _ in range(3):
        advance_time(app, sandbox, 300)
        refresh_due(app)

    assert at_first <= 8
    assert refresh_count(sandbox) == at_first
    advance_time(app, sandbox, 301)
    refresh_due(app)
    refresh_due(app)
    assert count_valid(app) == 30


def test_tokens_of_old_backup_become_suspect_not_ended(app: Flask, sandbox: SandboxClient) -> None:
    """The tokens in the backup have been used since. If each is accepted only once, all are rejected."""
    sandbox.settings(rotate=True)
    create_connections(app, sandbox, 40)
    backup = {row.id: (row.refresh_token, row.generation, row.expires_at, row.due_at) for row in rows(app)}
    assert refresh_due(app) == RefreshStats(refreshed=40)
    with app.app_context(), writing() as db:
        for row_id, (token, generation, expires_at, due_at) in backup.items():
            values = {"refresh_token": token, "generation": generation, "expires_at": expires_at}
            db.execute(sa.update(AccessToken).where(AccessToken.id == row_id).values(**values, due_at=due_at))
        db.execute(sa.delete(TokenRefresh))
        db.execute(sa.delete(Breaker))

    for _ in range(3):
        refresh_due(app)
        advance_time(app, sandbox, 86_400)

    assert is_open(app) == [Reason.REVOCATIONS]
    assert count_by_state(app) == {GrantState.ACTIVE: 40}
    assert all(row.refresh_token for row in rows(app))


def test_accepted_code_closes_misconfigured_breaker(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    """An operator who corrects the secret and connects does not have to wait for the next probe."""
    create_connections(app, sandbox, 2)
    sandbox.fault(on="refresh", kind="invalid_client", times=None)
    refresh_due(app)
    assert is_open(app) == [Reason.MISCONFIGURED]
    sandbox.clear_faults()

    connect(client, sandbox)

    assert is_open(app) == []
    refresh_due(app)
    assert count_valid(app) == 3


def test_breaker_is_shared_by_all_processes(
    app: Flask, another_worker: Flask, sandbox: SandboxClient
) -> None:
    create_connections(app, sandbox, 30)
    sandbox.fault(on="refresh", kind="google_502", times=None)
    refresh_due(app)
    calls = refresh_count(sandbox)

    assert refresh_due(another_worker).refreshed == 0
    assert refresh_count(sandbox) == calls


def test_revoked_grants_do_not_keep_breaker_open_for_valid_ones(app: Flask, sandbox: SandboxClient) -> None:
    """Twelve of 120, refreshed first, open the breaker, which must close again."""
    create_connections(app, sandbox, 120)
    for number in range(1, 13):
        sandbox.revoke(f"seed-{number:05}")
    refresh_due(app)
    assert is_open(app) == [Reason.REVOCATIONS]
    for _ in range(25):
        advance_time(app, sandbox, MINUTE)
        refresh_due(app)

    assert is_open(app) == []
    assert count_by_state(app) == {GrantState.ACTIVE: 108, GrantState.SUSPECT: 12}
    assert count_valid(app) == 108
    advance_time(app, sandbox, 86_400 + MINUTE)
    for _ in range(3):
        refresh_due(app)
        advance_time(app, sandbox, 86_400 + MINUTE)
    assert count_by_state(app) == {GrantState.ACTIVE: 108, GrantState.REAUTHORIZATION_REQUIRED: 12}


def test_longer_retry_after_extends_the_wait(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 3)
    sandbox.fault(on="refresh", kind="park", times=2)
    sandbox.fault(on="refresh", kind="rate_limited", retry_after=10)
    sandbox.fault(on="refresh", kind="rate_limited", retry_after=600)
    with ThreadPoolExecutor(1) as pool:
        first_pass = pool.submit(refresh_due, app)
        sandbox.wait_for_held(2)
        eventually(lambda: is_open(app) == [Reason.RATE_LIMITED])
        with app.app_context():
            breaker.record_outcomes([breaker.Observation(Outcome.RATE_LIMITED, retry_after=600)])
        sandbox.clear_faults()
        first_pass.result()

    with app.app_context():
        assert 500 < (breaker.retry_after(ApplicationKind.DEPLOYMENT) or 0) <= 600


@pytest.mark.parametrize("kind", ["rate_limited", "invalid_client"])
def test_rejection_closes_outage_breaker(app: Flask, sandbox: SandboxClient, kind: str) -> None:
    create_connections(app, sandbox, 3)
    sandbox.fault(on="refresh", kind=kind, times=None)
    refresh_due(app)
    assert len(is_open(app)) == 1
    sandbox.clear_faults()
    for number in (1, 2, 3):
        sandbox.revoke(f"seed-{number:05}")
    advance_time(app, sandbox, MINUTE)
    refresh_due(app)

    assert is_open(app) == []


@pytest.mark.parametrize("kind", ["unauthorized_client", "rate_limited"])
def test_one_connections_own_failure_pauses_others_only_briefly(
    app: Flask, sandbox: SandboxClient, kind: str
) -> None:
    create_connections(app, sandbox, 60)
    sandbox.fault(on="refresh", kind=kind, person="seed-00001", times=None)
    for _ in range(6):
        refresh_due(app)
        advance_time(app, sandbox, MINUTE)

    assert count_valid(app) == 59
    assert count_by_state(app) == {GrantState.ACTIVE: 60}


def test_breaker_of_unknown_reason_is_ignored(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 1)
    with app.app_context(), writing() as db:
        now = datetime.now(UTC)
        db.add(Breaker(name="moonlight", opened_at=now, closed_at=None, probe_at=now + timedelta(days=1)))

    assert refresh_due(app) == RefreshStats(refreshed=1)


def test_waiting_for_one_breaker_uses_up_the_probe_of_no_other(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 3)
    now = datetime.now(UTC)
    with app.app_context(), writing() as db:
        for reason, probe_at in (
            (Reason.OUTAGE, now - timedelta(seconds=1)),
            (Reason.RATE_LIMITED, now + timedelta(minutes=10)),
        ):
            db.add(Breaker(name=reason, opened_at=now - timedelta(minutes=1), probe_at=probe_at))

    assert refresh_due(app) == RefreshStats()

    with app.app_context(), reading() as db:
        probe_at = db.scalars(sa.select(Breaker.probe_at).where(Breaker.name == Reason.OUTAGE)).one()
    assert probe_at == now - timedelta(seconds=1)
