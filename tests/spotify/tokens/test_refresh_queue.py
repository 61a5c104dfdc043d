"""The refresh queue is shared by any number of schedulers, and does not delay requests."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra import database
from app.infra.database import reading, writing
from app.models import AccessToken, GrantState, SpotifyUser, TokenRefresh
from app.resilience.rate_limiter import RateLimiter
from app.services import services
from app.spotify.clients.application import ALL_KINDS, ApplicationKind
from app.spotify.tokens import refresh_queue, transitions
from app.spotify.tokens.batch_claims import Batch, BatchClaims
from app.spotify.tokens.refresh_pass import RefreshPass, RefreshStats
from tests.conftest import MakeApp
from tests.helpers.factories import advance_time, count_valid, create_connections, refresh_due
from tests.helpers.flows import connect, refresh_count, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

pytestmark = [pytest.mark.slow, pytest.mark.settings(REFRESH_RATE="2000", REFRESH_WORKERS="8")]

DAY = 86_400


def reserve(app: Flask, limit: int) -> list[int]:
    with app.app_context():
        claims = BatchClaims(services().token_cipher, services().applications, services().config)
        batch = claims.claim(limit, database.read_db_now())
    return [claim.row.spotify_user_id for claim in batch.claims]


def due_at(app: Flask, spotify_user_id: int) -> datetime | None:
    with app.app_context(), reading() as db:
        wanted = sa.select(AccessToken.due_at).where(AccessToken.spotify_user_id == spotify_user_id)
        return db.execute(wanted).scalar_one()


def test_batch_contains_connections_that_expire_first(app: Flask, sandbox: SandboxClient) -> None:
    spotify_user_ids = create_connections(app, sandbox, 30)
    spotify_user_ids.reverse()
    with app.app_context(), writing() as db:  # not in the order of their ids
        now = database.db_now(db)
        for number, spotify_user_id in enumerate(spotify_user_ids):
            row = sa.update(AccessToken).where(AccessToken.spotify_user_id == spotify_user_id)
            moment = now - timedelta(hours=1) + timedelta(seconds=number)
            db.execute(row.values(due_at=moment, expires_at=moment))

    assert reserve(app, 10) == spotify_user_ids[:10]
    assert reserve(app, 10) == spotify_user_ids[10:20]
    assert reserve(app, 100) == spotify_user_ids[20:]
    assert reserve(app, 100) == []


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_due_connections_are_found_by_index(app: Flask, sandbox: SandboxClient) -> None:
    """Sorting all that are due would take longer, the more there are."""
    create_connections(app, sandbox, 300)
    statements: list[tuple[str, Any]] = []
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).where(AccessToken.id % 2 == 0).values(failures=1))
        due_by = database.db_now(db)
    with app.app_context(), reading() as db:
        db.execute(sa.text("ANALYZE TABLE access_tokens"))
        connection = db.connection()
        sa.event.listen(connection, "before_cursor_execute", lambda *event: statements.append(event[2:4]))
        refresh_queue.earliest(db, 200, due_by)
        plans = [
            connection.exec_driver_sql(f"EXPLAIN {text}", values).all() for text, values in statements[:2]
        ]

    used = [{row.key for row in plan if row.table == "access_tokens"} for plan in plans]
    assert used == [{"ix_access_tokens_failures_due_at_expires_at"}, {"ix_access_tokens_due_at"}]
    assert not any("filesort" in row.Extra for plan in plans for row in plan if row.table == "access_tokens")


def test_claims_of_dead_scheduler_become_due_again(app: Flask, sandbox: SandboxClient) -> None:
    spotify_user_ids = create_connections(app, sandbox, 5)
    reserve(app, 5)
    advance_time(app, sandbox, 5)
    assert reserve(app, 5) == []

    advance_time(app, sandbox, 26)

    assert reserve(app, 5) == spotify_user_ids


@pytest.mark.sqlite_only
def test_leased_connection_is_not_claimed(app: Flask, sandbox: SandboxClient) -> None:
    spotify_user_ids = create_connections(app, sandbox, 2)
    with app.app_context(), writing() as db:
        lease = {"attempt_id": "a" * 32, "lease_until": datetime.now(UTC) + timedelta(seconds=30)}
        db.execute(
            sa.update(AccessToken).where(AccessToken.spotify_user_id == spotify_user_ids[0]).values(lease)
        )

    assert reserve(app, 5) == spotify_user_ids[1:]


def test_schedulers_never_claim_the_same_connection(app: Flask, sandbox: SandboxClient) -> None:
    spotify_user_ids = create_connections(app, sandbox, 200)

    def claim_all(_: int) -> list[int]:
        claimed: list[int] = []
        while batch := reserve(app, 7):
            claimed += batch
        return claimed

    with ThreadPoolExecutor(5) as pool:
        taken = Counter(
            spotify_user_id for claimed in pool.map(claim_all, range(5)) for spotify_user_id in claimed
        )

    assert taken == Counter(spotify_user_ids)


def test_concurrent_passes_refresh_each_connection_once(
    make_app: MakeApp, app: Flask, sandbox: SandboxClient
) -> None:
    create_connections(app, sandbox, 100)
    sandbox.settings(latency_ms={"token": 20, "api": 0}, rotate=True)

    schedulers = [make_app() for _ in range(5)]

    with ThreadPoolExecutor(5) as pool:
        passes = list(pool.map(refresh_due, schedulers))

    assert sum(done.refreshed for done in passes) == 100
    assert sum(done.failed for done in passes) == 0
    assert refresh_count(sandbox) == 100
    assert count_valid(app) == 100


@pytest.mark.sqlite_only
def test_schedulers_share_one_rate_limit(make_app: MakeApp, app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 41)
    slow = make_app(REFRESH_RATE="40")
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        passes = list(pool.map(lambda _: refresh_due(slow), range(2)))
        took = time.monotonic() - began

    assert sum(done.refreshed for done in passes) == 41
    assert took >= 1  # 40 slots after the first, at 40 a second


@pytest.mark.sqlite_only
def test_request_does_not_wait_for_backlog_of_scheduler(
    make_app: MakeApp,
    app: Flask,
    client: FlaskClient,
    sandbox: SandboxClient,
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    create_connections(app, sandbox, 100, expired_for=3600)
    with app.app_context(), writing() as db:
        claimed = AccessToken.spotify_user_id.in_(
            sa.select(SpotifyUser.id).where(SpotifyUser.user_id.is_not(None))
        )
        now = datetime.now(UTC)
        db.execute(sa.update(AccessToken).where(claimed).values(expires_at=now, due_at=now))
    sandbox.clear_calls()
    stopping = threading.Event()
    slow = make_app(REFRESH_RATE="1")
    with ThreadPoolExecutor(1) as pool:
        backlog = pool.submit(refresh_due, slow, stopping=stopping)
        sandbox.wait_for_calls(1)

        assert client.get("/api/spotify/token").status_code == 200

        people = [call["person"] for call in sandbox.calls(grant_type="refresh_token")]
        stopping.set()
        backlog.result()
    assert "mira_t_42" in people
    assert len(people) < 100  # the request did not wait until they were refreshed


@pytest.mark.sqlite_only
def test_stopped_pass_releases_claims_it_has_not_started(
    make_app: MakeApp, app: Flask, sandbox: SandboxClient
) -> None:
    spotify_user_ids = create_connections(app, sandbox, 100)
    stopping = threading.Event()
    slow = make_app(REFRESH_RATE="1")
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(refresh_due, slow, stopping=stopping)
        sandbox.wait_for_calls(1)
        stopping.set()
        done = stopped.result()

    assert 1 <= done.refreshed < 100
    with app.app_context(), reading() as db:
        stale = sa.select(AccessToken.spotify_user_id).where(AccessToken.generation == 0)
        left = set(db.scalars(stale))
    assert reserve(app, 100) == [
        spotify_user_id for spotify_user_id in spotify_user_ids if spotify_user_id in left
    ]


@pytest.mark.sqlite_only
@pytest.mark.parametrize("is_paused", [False, True], ids=["stopped", "paused by the breaker"])
def test_claims_for_which_no_call_is_made_can_be_claimed_immediately(
    app: Flask, sandbox: SandboxClient, is_paused: bool
) -> None:
    spotify_user_ids = create_connections(app, sandbox, 8)
    stopping = threading.Event()

    class StopAfterClaim(BatchClaims):
        def claim(self, limit: int, due_by: datetime, kinds: frozenset[ApplicationKind] = ALL_KINDS) -> Batch:
            batch = super().claim(limit, due_by, kinds)
            if is_paused:
                refresh_pass._pause({ApplicationKind.DEPLOYMENT})
            else:
                stopping.set()
            return batch

    with app.app_context():
        config, refresher = services().config, services().tokens.refresher
        claims = StopAfterClaim(services().token_cipher, services().applications, config)
        limiter = RateLimiter(services().redis, "refresh:rate", config.refresh_rate)
    refresh_pass = RefreshPass(app, config, refresher, claims, limiter, stopping)

    assert refresh_pass.run(lambda _: None) == RefreshStats()
    assert refresh_count(sandbox) == 0
    with app.app_context(), reading() as db:
        assert db.scalars(sa.select(TokenRefresh)).all() == []
    assert reserve(app, 20) == spotify_user_ids


@pytest.mark.sqlite_only
def test_pass_without_all_its_threads_leaves_none_behind(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def start_or_fail(thread: threading.Thread) -> None:
        if thread.name == "refresh-3":
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)

    with pytest.raises(RuntimeError, match="can't start"):
        refresh_due(app)

    assert [thread for thread in started if thread.name.startswith(("refresh-", "group-commit"))]
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.sqlite_only
def test_idle_connections_leave_queue_until_used(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    register(client, "ada")
    connect(client, sandbox)
    with app.app_context(), reading() as db:
        spotify_user_id = db.execute(sa.select(SpotifyUser.id)).scalar_one()
    advance_time(app, sandbox, 31 * DAY)

    assert refresh_due(app) == RefreshStats()
    assert due_at(app, spotify_user_id) is None

    client.post("/api/login", json={"login": "ada", "password": "a long sentence is best"})
    assert client.get("/api/spotify/token").status_code == 200
    assert due_at(app, spotify_user_id) is not None
    advance_time(app, sandbox, 3600)
    assert refresh_due(app) == RefreshStats(refreshed=1)


def test_refreshes_of_simultaneous_connections_are_spread_out() -> None:
    expires_at, hour = datetime(2026, 11, 23, 12, tzinfo=UTC), timedelta(hours=1)

    leads = [
        expires_at - transitions.next_refresh_at(expires_at, hour, timedelta(minutes=15)) for _ in range(500)
    ]

    assert timedelta(minutes=10) <= min(leads) < timedelta(minutes=11)
    assert timedelta(minutes=19) < max(leads) <= timedelta(minutes=20)


def test_short_lived_token_is_not_refreshed_in_its_first_half() -> None:
    expires_at = datetime(2026, 11, 23, 12, tzinfo=UTC)

    lead = expires_at - transitions.next_refresh_at(expires_at, timedelta(minutes=10), timedelta(minutes=15))

    assert timedelta(minutes=2.5) <= lead <= timedelta(minutes=5)


@pytest.mark.sqlite_only
def test_due_connection_is_refreshed_whatever_its_jitter(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    """A token that jitter makes due early must not count as fresh, or it would stay due."""
    connect(client, sandbox)
    with app.app_context(), writing() as db:
        now = datetime.now(UTC)
        values = {"expires_at": now + timedelta(minutes=19.9), "refreshed_at": now - timedelta(minutes=40)}
        db.execute(sa.update(AccessToken).values(**values, due_at=now))

    assert refresh_due(app) == RefreshStats(refreshed=1)


@pytest.mark.sqlite_only
def test_connection_refreshed_by_another_caller_is_rescheduled(
    app: Flask, client: FlaskClient, sandbox: SandboxClient
) -> None:
    connect(client, sandbox)
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(due_at=datetime.now(UTC)))

    assert refresh_due(app) == RefreshStats()

    with app.app_context(), reading() as db:
        row = db.scalars(sa.select(AccessToken)).one()
        assert row.due_at is not None
        assert timedelta(minutes=10) <= row.expires_at - row.due_at <= timedelta(minutes=20)


@pytest.mark.sqlite_only
def test_undecryptable_row_is_logged_and_kept_and_postponed(
    app: Flask, sandbox: SandboxClient, caplog: pytest.LogCaptureFixture
) -> None:
    create_connections(app, sandbox, 1)
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(refresh_token=b"\x01damaged"))

    assert refresh_due(app) == RefreshStats(failed=1)
    for _ in range(5):
        advance_time(app, sandbox, 600)
        assert refresh_due(app) == RefreshStats()

    assert [record.message for record in caplog.records].count("token_decryption_failed") == 1
    with app.app_context(), reading() as db:
        row = db.scalars(sa.select(AccessToken)).one()
        assert (row.state, row.refresh_token, row.failures) == (GrantState.ACTIVE, b"\x01damaged", 0)
        assert db.scalars(sa.select(TokenRefresh)).all() == []
    assert sandbox.calls(grant_type="refresh_token") == []


def test_refresh_continues_after_lease_of_dead_attempt(app: Flask, sandbox: SandboxClient) -> None:
    create_connections(app, sandbox, 1)
    sandbox.fault(on="refresh", kind="park")
    with ThreadPoolExecutor(1) as pool:
        dying = pool.submit(refresh_due, app)
        sandbox.wait_for_held(1)
        assert reserve(app, 1) == []
        advance_time(app, sandbox, 31)
        # If the pass that is waiting has not yet looked for more connections, it may refresh this one itself.
        eventually(lambda: refresh_due(app) and count_valid(app) == 1)
        sandbox.release()
        dying.result()

    assert count_valid(app) == 1
    with app.app_context(), reading() as db:
        outcomes_ = list(db.scalars(sa.select(TokenRefresh.outcome).order_by(TokenRefresh.id)))
    assert outcomes_ == ["superseded", "refreshed"]
