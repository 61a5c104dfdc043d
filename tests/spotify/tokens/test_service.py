"""The token service refreshes on use, exactly once, and loses nothing if Spotify fails."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event
from werkzeug.test import TestResponse

from app.infra.database import db as database
from app.infra.database import reading, writing
from app.models import AccessToken, GrantState, TokenRefresh
from app.models.access_token import six_months_after
from app.spotify.tokens import attempts
from tests.conftest import MakeApp
from tests.helpers.factories import advance_time
from tests.helpers.flows import another_tab, connect, refresh_count, register, slug
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, Server, eventually
from tests.helpers.upstream import Received, Reply, running_upstream

# For tests that do not depend on the database, and for races that tests/chaos runs on MariaDB.
SQLITE = pytest.mark.sqlite_only


def row(app: Flask) -> AccessToken:
    with app.app_context(), reading() as db:
        return db.scalars(sa.select(AccessToken)).one()


def history(app: Flask) -> list[TokenRefresh]:
    with app.app_context(), reading() as db:
        return list(db.scalars(sa.select(TokenRefresh).order_by(TokenRefresh.id)))


def change(app: Flask, **values: object) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(**values))


def expire(app: Flask, seconds: float = 60) -> None:
    """Make the stored access token expire this many seconds ago."""
    change(app, expires_at=datetime.now(UTC) - timedelta(seconds=seconds))


def expire_in(app: Flask, seconds: float) -> None:
    """Make an access token with a lifetime of an hour expire in this many seconds."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    change(app, expires_at=end, refreshed_at=end - timedelta(hours=1))


@pytest.fixture
def connected(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """Return the client of a person with an account and a connection."""
    register(client, "ada")
    connect(client, sandbox)
    return client


@SQLITE
def test_fresh_token_is_returned_without_a_call(connected: FlaskClient, sandbox: SandboxClient) -> None:
    sandbox.clear_calls()

    response = connected.get("/api/spotify/token")

    assert response.status_code == 200
    assert response.json.keys() == {"access_token", "token_type", "expires_in", "expires_at", "scope"}
    assert response.json["token_type"] == "Bearer"
    assert 3500 < response.json["expires_in"] <= 3600
    assert response.headers["Cache-Control"] == "no-store"
    assert sandbox.calls() == []


@SQLITE
def test_refreshed_token_works_at_spotify(connected: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    expire(app)
    sandbox.expire_access_tokens()

    token = connected.get("/api/spotify/token").json["access_token"]

    me = requests.get(f"{sandbox.api_url}/me", headers={"Authorization": f"Bearer {token}"}, timeout=LONG)
    assert me.json()["id"] == "mira_t_42"


def test_refresh_reads_the_row_twice(connected: FlaskClient, app: Flask) -> None:
    """Once before the lock, and once while holding it. The committed values are the result."""
    expire(app)
    spotify_user_id = row(app).spotify_user_id
    with app.app_context(), selects_of("access_tokens") as selects:
        token = app.extensions["backline"].tokens.access_token_for(spotify_user_id)

    assert len(selects) == 2
    stored = row(app)
    assert token.version == (stored.grant_id, stored.generation)
    assert (token.expires_at, token.scope) == (stored.expires_at, stored.scope)


@contextmanager
def selects_of(table: str) -> Iterator[list[str]]:
    """Collect the SELECT statements that read a table."""
    found: list[str] = []

    def collect(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT") and f"FROM {table}" in statement:
            found.append(statement)

    event.listen(database.engine, "before_cursor_execute", collect)
    try:
        yield found
    finally:
        event.remove(database.engine, "before_cursor_execute", collect)


@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_expired_token_is_refreshed_each_time(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, rotate: bool
) -> None:
    sandbox.settings(rotate=rotate)
    authorized_at = row(app).authorized_at
    tokens = {connected.get("/api/spotify/token").json["access_token"]}
    for generation in (1, 2, 3):
        expire(app)
        response = connected.get("/api/spotify/token")
        assert response.status_code == 200, response.text
        tokens.add(response.json["access_token"])
        assert row(app).generation == generation

    assert len(tokens) == 4
    assert refresh_count(sandbox) == 3
    assert [attempt.outcome for attempt in history(app)] == ["refreshed"] * 3
    assert [attempt.generation for attempt in history(app)] == [0, 1, 2]
    assert row(app).authorized_at == authorized_at


@SQLITE
def test_playback_token_with_under_five_minutes_is_refreshed(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire_in(app, 290)

    # A caller whose token is still valid waits for a second only.
    eventually(lambda: connected.get("/api/spotify/token").json["expires_in"] > 3500)
    assert refresh_count(sandbox) == 1


@SQLITE
@pytest.mark.parametrize(
    ("rotate", "lifetime"),
    # A lifetime shorter than the lead is never fresh enough, but waiting callers take the token.
    [(False, 3600), (True, 3600), (True, 60)],
    ids=["non-rotating", "rotating", "short-lived"],
)
def test_twenty_callers_make_one_call_to_spotify(
    connected: FlaskClient,
    app: Flask,
    another_worker: Flask,
    sandbox: SandboxClient,
    rotate: bool,
    lifetime: int,
) -> None:
    sandbox.settings(rotate=rotate, expires_in=lifetime)
    sandbox.fault(on="refresh", kind="park")
    expire(app)
    workers = (app, another_worker)
    with ThreadPoolExecutor(20) as pool:
        tabs = [another_tab(connected, worker) for worker in workers for _ in range(10)]
        calls = [pool.submit(tab.get, "/api/spotify/token") for tab in tabs]
        sandbox.wait_for_held(1)
        waiting = [worker.extensions["backline"].tokens._bulkhead._deployment.waiters for worker in workers]
        eventually(lambda: [len(waiters) for waiters in waiting] == [10, 10])
        sandbox.release()
        responses = [call.result() for call in calls]

    assert [response.status_code for response in responses] == [200] * 20
    assert len({response.json["access_token"] for response in responses}) == 1
    assert refresh_count(sandbox) == 1
    assert [attempt.outcome for attempt in history(app)] == ["refreshed"]


@SQLITE
def test_waiting_caller_takes_new_token_however_short_lived(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    before = row(app)
    connected.get("/api/spotify/token")
    now = datetime.now(UTC)
    change(app, refreshed_at=now - timedelta(seconds=50), expires_at=now + timedelta(seconds=10))

    with app.app_context():
        after, _ = app.extensions["backline"].tokens.refresher.refresh(
            before, lead=timedelta(minutes=15), wait_seconds=12
        )

    assert after.generation == 1
    assert refresh_count(sandbox) == 1


@SQLITE
def test_lost_redis_lock_still_results_in_one_call(
    connected: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient
) -> None:
    """Redis loses the lock during a refresh. The claim in the database still holds."""
    expire(app)
    sandbox.fault(on="refresh", kind="park", times=1)
    with ThreadPoolExecutor(3) as pool:
        tabs = [another_tab(connected, worker) for worker in (app, another_worker, another_worker)]
        first = pool.submit(tabs[0].get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        store: redis.Redis = app.extensions["backline"].redis
        assert store.delete(*store.keys("lock:*")) == 1
        others = [pool.submit(tab.get, "/api/spotify/token") for tab in tabs[1:]]
        eventually(lambda: store.keys("lock:*"))
        sandbox.release()
        responses = [future.result() for future in [first, *others]]

    assert [response.status_code for response in responses] == [200, 200, 200]
    assert len({response.json["access_token"] for response in responses}) == 1
    assert refresh_count(sandbox) == 1


@SQLITE
def test_caller_with_valid_token_never_waits(
    connected: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient
) -> None:
    """No caller waits, in any worker."""
    expire_in(app, 200)
    sandbox.fault(on="refresh", kind="park", times=1)
    for tab in (connected, another_tab(connected, another_worker)):
        response = tab.get("/api/spotify/token")

        assert response.status_code == 200
        assert response.json["expires_in"] <= 200
        sandbox.wait_for_held(1)
    sandbox.release()
    eventually(lambda: row(app).generation == 1)
    assert connected.get("/api/spotify/token").json["expires_in"] > 3500
    assert refresh_count(sandbox) == 1


@SQLITE
def test_refresh_continues_after_caller_disconnects(
    connected: FlaskClient,
    app: Flask,
    sandbox: SandboxClient,
    server: Callable[..., AbstractContextManager[Server]],
) -> None:
    cookie = connected.get_cookie("backline_session")
    assert cookie is not None
    expire(app)
    sandbox.fault(on="refresh", kind="park", times=1)
    with server(workers=1, threads=2) as api, requests.Session() as http:
        http.trust_env = False
        http.headers["X-Requested-With"] = "test"
        jar, patience = {"backline_session": cookie.value}, (LONG, 0.5)
        with pytest.raises(requests.ReadTimeout):
            http.get(f"{api.url}/api/spotify/token", cookies=jar, timeout=patience)
        sandbox.wait_for_held(1)
        sandbox.release()
        eventually(lambda: row(app).generation == 1)


def test_outage_leaves_grant_active(connected: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    expire(app)
    before = row(app)
    sandbox.fault(on="refresh", kind="google_502", times=None)

    response = connected.get("/api/spotify/token")

    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
    assert int(response.headers["Retry-After"]) >= 1
    after = row(app)
    assert (after.state, after.generation) == (GrantState.ACTIVE, 0)
    assert after.refresh_token == before.refresh_token
    assert after.attempt_id is None
    # When Spotify is back and the backoff is over, everything works again.
    sandbox.clear_faults()
    change(app, not_before=None)
    assert connected.get("/api/spotify/token").status_code == 200


@SQLITE
def test_callers_during_outage_share_one_failure(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    change(app, failures=5)
    sandbox.fault(on="refresh", kind="google_502", times=None)

    responses = [connected.get("/api/spotify/token") for _ in range(5)]

    assert {response.status_code for response in responses} == {503}
    assert refresh_count(sandbox) == 1


@SQLITE
def test_backoff_grows_with_each_failure(connected: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    expire(app)
    sandbox.fault(on="refresh", kind="google_502", times=None)
    pauses = []
    for failures in (1, 2, 3, 4, 5, 6):
        connected.get("/api/spotify/token")
        paused, finished_at = row(app), history(app)[-1].finished_at
        assert paused.failures == failures
        assert paused.not_before is not None
        assert finished_at is not None
        pauses.append((paused.not_before - finished_at).total_seconds())
        change(app, not_before=None)

    # Jitter takes up to half away, so each backoff is compared with the one after the next.
    assert all(longer > shorter for shorter, longer in zip(pauses, pauses[2:], strict=False))


@SQLITE
def test_outage_does_not_confirm_rejection(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    sandbox.fault(on="refresh", kind="false_invalid_grant", times=1)
    connected.get("/api/spotify/token")
    sandbox.fault(on="refresh", kind="google_502", times=4)
    for _ in range(4):
        change(app, not_before=datetime.now(UTC) - timedelta(seconds=1))
        assert connected.get("/api/spotify/token").status_code == 503

    assert (row(app).state, row(app).failures) == (GrantState.SUSPECT, 1)


@SQLITE
def test_refresh_superseded_by_new_consent_writes_nothing(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    tab = another_tab(connected)
    sandbox.fault(on="refresh", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(tab.get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        change(app, state=GrantState.REAUTHORIZATION_REQUIRED)  # so that the API offers a new consent
        connect(connected, sandbox)
        renewed = row(app)
        sandbox.release()
        response = late.result()

    assert response.status_code == 200
    assert row(app).access_token == renewed.access_token
    assert row(app).generation == 0
    assert [attempt.outcome for attempt in history(app)] == ["superseded"]


@SQLITE
def test_new_grant_is_refreshed_while_refresh_of_old_one_runs(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    sandbox.fault(on="refresh", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(another_tab(connected).get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        change(app, state=GrantState.REAUTHORIZATION_REQUIRED)  # so that the API offers a new consent
        connect(connected, sandbox)
        expire(app)
        response = connected.get("/api/spotify/token")
        renewed = row(app)
        sandbox.release()
        late_response = late.result()

    assert (response.status_code, late_response.status_code) == (200, 200)
    assert late_response.json["access_token"] == response.json["access_token"]
    assert (renewed.generation, row(app).generation) == (1, 1)


@SQLITE
@pytest.mark.parametrize("rotate", [False, True], ids=["non-rotating", "rotating"])
def test_attempt_that_outlived_its_lease_writes_nothing(
    connected: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient, rotate: bool
) -> None:
    """Paused for longer than its lease, the attempt ends with a result for the previous generation.

    With rotating tokens, the result is a rejection, which must not affect the grant.
    """
    sandbox.settings(rotate=rotate)
    expire(app)
    tab = another_tab(connected, another_worker)
    sandbox.fault(on="refresh", kind="park", times=1)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(tab.get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        store: redis.Redis = app.extensions["backline"].redis
        store.delete(*store.keys("lock:*"))
        change(app, lease_until=datetime.now(UTC) - timedelta(seconds=1))
        response = connected.get("/api/spotify/token")
        stored = row(app)
        sandbox.release()
        late_answer = late.result()

    assert (response.status_code, late_answer.status_code) == (200, 200)
    assert late_answer.json["access_token"] == response.json["access_token"]
    assert row(app).access_token == stored.access_token
    assert (row(app).generation, row(app).state) == (1, GrantState.ACTIVE)
    assert sorted(str(attempt.outcome) for attempt in history(app)) == ["refreshed", "superseded"]


@SQLITE
def test_late_new_refresh_token_is_kept_as_spare(
    connected: FlaskClient, app: Flask, another_worker: Flask, sandbox: SandboxClient
) -> None:
    """If each token is accepted only once, the late one may be the only valid one."""
    sandbox.settings(rotate=True, rotation_grace_s=3600)
    expire(app)
    sandbox.fault(on="refresh", kind="park", after_effect=True)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(another_tab(connected, another_worker).get, "/api/spotify/token")
        sandbox.wait_for_held(1)
        advance_time(app, sandbox, 31)
        assert connected.get("/api/spotify/token").status_code == 200
        sandbox.release()
        assert late.result().status_code == 200
    kept = row(app)
    assert kept.generation == 1
    assert kept.spare_refresh_token is not None

    expire(app)
    sandbox.fault(on="refresh", kind="false_invalid_grant")
    rejected = connected.get("/api/spotify/token")

    assert (rejected.status_code, slug(rejected)) == (503, "spotify-unavailable")
    changed = row(app)
    assert (changed.state, changed.generation, changed.failures) == (GrantState.ACTIVE, 1, 0)
    assert (changed.refresh_token, changed.spare_refresh_token) == (kept.spare_refresh_token, None)
    assert connected.get("/api/spotify/token").status_code == 200
    assert row(app).generation == 2


@SQLITE
def test_unused_spare_is_discarded_after_success(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    change(app, spare_refresh_token=b"whatever")
    expire(app)

    assert connected.get("/api/spotify/token").status_code == 200
    assert row(app).spare_refresh_token is None


@SQLITE
@pytest.mark.parametrize("status", [0, 400], ids=["closed", "invalid_grant"])
def test_late_failure_keeps_lease_of_next_attempt(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, make_app: MakeApp, status: int
) -> None:
    """An attempt fails after its lease, while the next one is calling Spotify."""
    expire(app)
    sandbox.fault(on="refresh", kind="park")
    leases: list[str | None] = []
    with ThreadPoolExecutor(1) as pool, running_upstream() as accounts:

        def reply(_: Received) -> Reply:
            advance_time(app, sandbox, 31)
            pool.submit(connected.get, "/api/spotify/token").add_done_callback(responses.append)
            sandbox.wait_for_held(1)
            leases.append(row(app).attempt_id)
            return Reply(status, b'{"error": "invalid_grant"}')

        responses: list[Future[TestResponse]] = []
        accounts.reply = reply
        slow_worker = make_app(SPOTIFY_ACCOUNTS_URL=accounts.root_url)
        late = another_tab(connected, slow_worker).get("/api/spotify/token")

        assert (late.status_code, slug(late)) == (503, "spotify-unavailable")
        assert ([row(app).attempt_id], row(app).state) == (leases, GrantState.ACTIVE)
        sandbox.release()

    assert [response.result().status_code for response in responses] == [200]
    assert refresh_count(sandbox) == 1


@SQLITE
def test_old_claim_makes_no_call(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause between claim and call, the next attempt may already have used the token."""
    expire(app)
    with monkeypatch.context() as paused:
        paused.setattr(attempts, "_SEND_WITHIN_SECONDS", -1)
        assert connected.get("/api/spotify/token").status_code == 503
    assert refresh_count(sandbox) == 0

    advance_time(app, sandbox, 31)

    assert connected.get("/api/spotify/token").status_code == 200
    assert [attempt.outcome for attempt in history(app)] == [None, "refreshed"]


@SQLITE
def test_refresh_continues_after_lease_of_dead_attempt(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    change(app, attempt_id="f" * 32, lease_until=datetime.now(UTC) - timedelta(seconds=1))

    assert connected.get("/api/spotify/token").status_code == 200
    assert row(app).lease_until is None


def test_database_rejects_second_effective_refresh(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    expire(app)
    connected.get("/api/spotify/token")
    [done] = history(app)
    duplicate = TokenRefresh(
        spotify_user_id=done.spotify_user_id,
        grant_id=done.grant_id,
        generation=done.generation,
        attempt_id="e" * 32,
        outcome="refreshed",
        effective=1,
        started_at=datetime.now(UTC),
    )

    with pytest.raises(sa.exc.IntegrityError), app.app_context(), writing() as db:
        db.add(duplicate)


def test_ciphertext_of_another_user_cannot_be_decrypted(
    new_client: Callable[[], FlaskClient], app: Flask, sandbox: SandboxClient
) -> None:
    for name, person in (("ada", "mira_t_42"), ("bob", "aiko-87")):
        client = new_client()
        register(client, name)
        connect(client, sandbox, person=person)
    with app.app_context(), writing() as db:
        ada, bob = db.scalars(sa.select(AccessToken).order_by(AccessToken.id))
        bob.access_token = ada.access_token
        db.flush()
        before = db.execute(sa.text("SELECT count(*) FROM access_tokens")).scalar()

    response = client.get("/api/spotify/token")

    assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
    assert before == 2
    assert client.get("/api/spotify").json["status"] == "connected"


def test_use_is_recorded_at_most_once_an_hour(
    connected: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    def last_used() -> Any:
        with app.app_context(), reading() as db:
            return db.execute(sa.text("SELECT last_used_at FROM spotify_users")).scalar()

    last_use = last_used()
    connected.get("/api/spotify/token")
    assert last_used() == last_use
    with app.app_context(), writing() as db:
        from app.models import SpotifyUser

        db.execute(sa.update(SpotifyUser).values(last_used_at=datetime.now(UTC) - timedelta(hours=2)))
    old = last_used()

    connected.get("/api/spotify/token")

    assert last_used() != old


@SQLITE
@pytest.mark.settings(PLAYBACK_TOKEN_ENABLED="false")
def test_playback_token_can_be_disabled(client: FlaskClient, sandbox: SandboxClient) -> None:
    connect(client, sandbox)

    response = client.get("/api/spotify/token")

    assert (response.status_code, slug(response)) == (404, "not-found")


@SQLITE
def test_each_issued_playback_token_is_logged(
    connected: FlaskClient, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")

    token = connected.get("/api/spotify/token").json["access_token"]
    change(app, scope="user-read-private")
    connected.get("/api/spotify/token")

    [issued] = [record for record in caplog.records if record.getMessage() == "playback_token_issued"]
    assert vars(issued)["spotify_user_id"] == row(app).spotify_user_id
    assert token not in str(vars(issued))


@SQLITE
def test_playback_token_requires_connection(client: FlaskClient) -> None:
    response = client.get("/api/spotify/token")

    assert (response.status_code, slug(response)) == (409, "spotify-not-connected")


@pytest.mark.parametrize(
    ("consent", "end"),
    [
        ("2026-01-15T10:00:00+00:00", "2026-07-15T10:00:00+00:00"),
        ("2026-08-31T10:00:00+00:00", "2027-02-28T10:00:00+00:00"),
        ("2027-08-30T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
        ("2026-12-31T23:59:59+00:00", "2027-06-30T23:59:59+00:00"),
    ],
)
def test_six_months_are_calendar_months(consent: str, end: str) -> None:
    assert six_months_after(datetime.fromisoformat(consent)) == datetime.fromisoformat(end)


@SQLITE
def test_playback_token_requires_streaming_scope(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """The token is not even refreshed. A scope with a longer name is another scope."""
    sandbox.settings(granted_scopes=["user-read-private", "user-modify-playback-state"])
    connect(client, sandbox)
    expire(app)
    for scope in (None, "user-read-private streaming-x", "x-streaming", "STREAMING", ""):
        if scope is not None:
            change(app, scope=scope)
        response = client.get("/api/spotify/token")

        assert (response.status_code, slug(response)) == (403, "insufficient-scope")
        assert response.headers["Cache-Control"] == "no-store"
        assert "access_token" not in response.json
    assert refresh_count(sandbox) == 0


@SQLITE
def test_playback_token_is_never_cached_or_shared(
    new_client: Callable[[], FlaskClient],
    app: Flask,
    sandbox: SandboxClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The secret scanner also checks logs, Redis, and columns after every test."""
    ada, bob = new_client(), new_client()
    connect(ada, sandbox)
    connect(bob, sandbox, person="aiko-87")
    tokens = {}
    for name, client in (("ada", ada), ("bob", bob), ("ada again", ada)):
        response = client.get("/api/spotify/token")
        tokens[name] = response.json["access_token"]
        assert response.headers["Cache-Control"] == "no-store"
        assert not {"ETag", "Last-Modified", "Expires", "Age", "X-Cache", "Set-Cookie"} & {
            *response.headers.keys()
        }
        assert "refresh_token" not in response.json

    assert tokens["ada"] == tokens["ada again"] != tokens["bob"]
    store: redis.Redis = app.extensions["backline"].redis
    assert store.keys("shared:*") == []
