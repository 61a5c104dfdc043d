"""A slow accounts service blocks at most half of a worker's threads, whatever they wait for."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.database import writing
from app.models import AccessToken
from app.spotify.clients import accounts_bulkhead, capacity
from app.spotify.clients.accounts_bulkhead import AccountsBulkhead, AccountsBusy
from app.spotify.clients.capacity import accounts_waiters
from app.spotify.tokens import refresh, service
from tests.conftest import MakeApp
from tests.helpers.factories import create_connections
from tests.helpers.flows import another_tab, connect, register, send_callback, slug, start_authorization
from tests.helpers.own_applications import create_own_applications
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import LONG, eventually

ONE_DATABASE = pytest.mark.sqlite_only
pytestmark = pytest.mark.settings(THREADS="8")


@pytest.fixture
def short_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_bulkhead, "LONG_WAIT_SECONDS", 0.1)


@pytest.fixture
def short_slow_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_bulkhead, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(accounts_bulkhead, "REMEMBERED_SECONDS", LONG)


class WaitingThreads:
    """Threads that wait at a bulkhead for one result."""

    def __init__(self, bulkhead: AccountsBulkhead) -> None:
        self.result: Future[str] = Future()
        self._bulkhead = bulkhead
        self._pool = ThreadPoolExecutor(16)

    def start(self, count: int) -> list["Future[str]"]:
        return [self._pool.submit(self._wait) for _ in range(count)]

    def _wait(self) -> str:
        try:
            with self._bulkhead.waiting() as waiter:
                return waiter.result(self.result, LONG)
        except AccountsBusy:
            return "released"

    def close(self) -> None:
        self.result.set_result("served")
        self._pool.shutdown()


@pytest.fixture
def bulkhead() -> AccountsBulkhead:
    return AccountsBulkhead(threads=4)


@pytest.fixture
def waiting(bulkhead: AccountsBulkhead) -> Iterator[WaitingThreads]:
    waiting = WaitingThreads(bulkhead)
    yield waiting
    if not waiting.result.done():
        waiting.close()


@pytest.mark.usefixtures("short_long_wait")
def test_long_waits_beyond_half_are_released(bulkhead: AccountsBulkhead, waiting: WaitingThreads) -> None:
    callers = waiting.start(10)
    eventually(lambda: sum(caller.done() for caller in callers) == 8)

    callers += waiting.start(3)
    eventually(lambda: sum(caller.done() for caller in callers) == 11)

    waiting.close()
    assert sorted(caller.result() for caller in callers) == ["released"] * 11 + ["served"] * 2


@pytest.mark.usefixtures("short_slow_threshold")
def test_slow_call_is_remembered_for_a_while(bulkhead: AccountsBulkhead, waiting: WaitingThreads) -> None:
    with bulkhead.calling():
        callers = waiting.start(3)
        eventually(lambda: sum(caller.done() for caller in callers) == 1)

    with pytest.raises(AccountsBusy), bulkhead.waiting():
        pass
    bulkhead._deployment.slow_until -= accounts_bulkhead.REMEMBERED_SECONDS
    with bulkhead.waiting():
        pass


@pytest.mark.usefixtures("short_long_wait")
def test_long_waits_do_not_affect_callers_whose_wait_begins(
    bulkhead: AccountsBulkhead, waiting: WaitingThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = waiting.start(10)
    eventually(lambda: sum(caller.done() for caller in callers) == 8)

    monkeypatch.setattr(accounts_bulkhead, "LONG_WAIT_SECONDS", LONG)
    for _ in range(3):
        with bulkhead.waiting() as waiter:
            waiter.require_capacity()


@ONE_DATABASE
def test_refreshes_and_exchanges_are_timed(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_bulkhead, "SLOW_SECONDS", -1.0)  # any call takes longer
    bulkhead = app.extensions["backline"].tokens._bulkhead

    connect(client, sandbox)
    assert bulkhead._deployment.slow_until > 0

    bulkhead._deployment.slow_until = 0.0
    expire_tokens(app)
    assert client.get("/api/spotify/token").status_code == 200
    assert bulkhead._deployment.slow_until > 0


def test_waiters_are_limited_to_the_threads_of_a_worker(bulkhead: AccountsBulkhead) -> None:
    with ExitStack() as waits:
        for _ in range(accounts_waiters(threads=4)):
            waits.enter_context(bulkhead.waiting())
        with pytest.raises(AccountsBusy), bulkhead.waiting():
            pass


def test_exchanges_are_limited_to_half_of_the_threads(bulkhead: AccountsBulkhead) -> None:
    with ThreadPoolExecutor(1) as pool, ExitStack() as exchanges:
        for _ in range(2):
            exchanges.enter_context(bulkhead.exchanging())

        def exchange() -> str:
            with bulkhead.exchanging():
                return "exchanged"

        queued = pool.submit(exchange)
        eventually(lambda: bulkhead._deployment.queued == 1)
        with pytest.raises(AccountsBusy), bulkhead.exchanging():
            pass
        assert not queued.done()
        exchanges.close()
        assert queued.result(LONG) == "exchanged"
    assert (
        bulkhead._deployment.exchanging
        == bulkhead._deployment.queued
        == len(bulkhead._deployment.waiters)
        == 0
    )


@pytest.mark.usefixtures("short_slow_threshold")
def test_exchanges_count_as_waiting_threads(bulkhead: AccountsBulkhead, waiting: WaitingThreads) -> None:
    with bulkhead.exchanging(), bulkhead.exchanging():
        callers = waiting.start(3)

        assert [caller.result(LONG) for caller in callers] == ["released"] * 3


@pytest.mark.usefixtures("short_slow_threshold")
def test_slow_call_with_one_own_application_limits_no_other(bulkhead: AccountsBulkhead) -> None:
    with bulkhead.calling("one"), ExitStack() as waits:
        waits.enter_context(bulkhead.waiting("one"))
        eventually(lambda: _is_rejected(bulkhead, "one"))
        for client_id in ("two", None):
            for _ in range(3):
                waits.enter_context(bulkhead.waiting(client_id))


@pytest.mark.usefixtures("short_slow_threshold")
def test_slow_call_with_the_deployments_application_limits_no_other(bulkhead: AccountsBulkhead) -> None:
    with bulkhead.calling(), ExitStack() as waits:
        for _ in range(2):
            waits.enter_context(bulkhead.waiting())
        eventually(lambda: _is_rejected(bulkhead, None))
        for _ in range(3):
            waits.enter_context(bulkhead.waiting("one"))


def test_own_applications_leave_half_of_the_waits_to_the_deployment(bulkhead: AccountsBulkhead) -> None:
    most = accounts_waiters(threads=4)
    with ExitStack() as waits:
        for number in range(most // 2):
            waits.enter_context(bulkhead.waiting(f"application {number % 3}"))
        assert _is_rejected(bulkhead, "another")
        for _ in range(most // 2):
            waits.enter_context(bulkhead.waiting())
        assert _is_rejected(bulkhead, None)  # a worker has no more threads


def test_own_application_exchanges_codes_in_half_of_the_slots(bulkhead: AccountsBulkhead) -> None:
    with bulkhead.exchanging("one"):
        with pytest.raises(AccountsBusy), bulkhead.exchanging("one"):
            pass
        with bulkhead.exchanging("two"), bulkhead.exchanging(), bulkhead.exchanging():
            pass
        with bulkhead.exchanging("two"), pytest.raises(AccountsBusy), bulkhead.exchanging("three"):
            pass


def test_shares_of_own_applications_are_forgotten_after_use(bulkhead: AccountsBulkhead) -> None:
    for number in range(3):
        with bulkhead.waiting(f"application {number}"):
            pass

    assert list(bulkhead._own) == ["application 2"]


def _is_rejected(bulkhead: AccountsBulkhead, client_id: str | None) -> bool:
    try:
        with bulkhead.waiting(client_id):
            return False
    except AccountsBusy:
        return True


@ONE_DATABASE
def test_refresh_pool_has_a_thread_for_each_waiter(app: Flask) -> None:
    """Otherwise, refreshes that queue for a thread would make a fast service look slow."""
    built = app.extensions["backline"]

    for refreshes in built.tokens._refreshes.values():
        assert refreshes._pool._max_workers >= built.tokens._bulkhead._max_waiters


@ONE_DATABASE
@pytest.mark.usefixtures("short_slow_threshold")
def test_hanging_refreshes_of_own_applications_delay_none_of_the_deployment(
    make_app: MakeApp, sandbox: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "_MIN_ACCOUNTS_WAITERS", 2)
    app = make_app(THREADS="2")
    bulkhead, tokens = app.extensions["backline"].tokens._bulkhead, app.extensions["backline"].tokens
    own = create_own_applications(app, sandbox, 2)
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    [connection] = create_connections(app, sandbox, 1)
    for each in own:
        sandbox.fault(on="token", kind="park", times=None, client_id=each["client_id"])
    with app.app_context():
        for each in own:
            tokens.access_token_for(each["connections"][0], timedelta(hours=2))  # refreshes in the background
        sandbox.wait_for_held(2)
        eventually(lambda: all(bulkhead._share_of(each["client_id"]).is_slow() for each in own))
        assert not bulkhead._deployment.is_slow()

        tokens.access_token_for(connection)
    sandbox.clear_faults()


# --- requests --------------------------------------------------------------------------------------


@pytest.fixture
def pool(sandbox: SandboxClient) -> Iterator[ThreadPoolExecutor]:
    """Return threads for simultaneous requests. Held calls end first, so that none is blocked."""
    with ThreadPoolExecutor(20) as pool:
        yield pool
        sandbox.clear_faults()


def check_rejected(responses: list[TestResponse]) -> None:
    for response in responses:
        assert (response.status_code, slug(response)) == (503, "spotify-unavailable")
        assert response.headers["Retry-After"] == "2"


def expire_tokens(app: Flask) -> None:
    with app.app_context(), writing() as db:
        db.execute(sa.update(AccessToken).values(expires_at=datetime.now(UTC) - timedelta(minutes=1)))


def get_token(client: FlaskClient) -> TestResponse:
    return another_tab(client).get("/api/spotify/token")


@ONE_DATABASE
@pytest.mark.usefixtures("short_slow_threshold")
def test_refreshes_of_a_slow_application_reject_only_its_own_callers(
    app: Flask, sandbox: SandboxClient
) -> None:
    [own] = create_own_applications(app, sandbox, 1)
    [connection] = create_connections(app, sandbox, 1)
    built = app.extensions["backline"]
    bulkhead, tokens = built.tokens._bulkhead, built.tokens
    for slow, rejected, served in (
        (own["client_id"], own["connections"][0], connection),
        (None, connection, own["connections"][0]),
    ):
        with bulkhead.calling(slow), ExitStack() as waits, app.app_context():
            for _ in range(bulkhead._share_of(slow).slots):
                waits.enter_context(bulkhead.waiting(slow))
            eventually(lambda slow=slow: _is_rejected(bulkhead, slow))  # type: ignore[misc]
            with pytest.raises(AccountsBusy):
                tokens.access_token_for(rejected)
            tokens.access_token_for(served)
        expire_tokens(app)


@ONE_DATABASE
def test_fast_service_gives_every_caller_a_token(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    connect(client, sandbox)
    expire_tokens(app)
    sandbox.fault(on="refresh", kind="park")
    calls = [pool.submit(get_token, client) for _ in range(20)]
    sandbox.wait_for_held(1)
    eventually(lambda: len(app.extensions["backline"].tokens._bulkhead._deployment.waiters) == 20)
    sandbox.release()

    assert [one.result(LONG).status_code for one in calls] == [200] * 20
    assert len(sandbox.calls(grant_type="refresh_token")) == 1


@ONE_DATABASE
@pytest.mark.usefixtures("short_long_wait")
def test_lease_of_a_killed_process_rejects_no_caller_of_another_grant(
    app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WAIT_SECONDS", LONG)
    leased, another = create_connections(app, sandbox, 2)
    tokens = app.extensions["backline"].tokens
    _store_lease(app, leased, timedelta(seconds=30))

    def get(connection: int) -> bool:
        with app.app_context():
            try:
                return bool(tokens.access_token_for(connection, wait_seconds=LONG).access_token)
            except AccountsBusy:
                return False

    callers = [pool.submit(get, leased) for _ in range(12)]
    eventually(lambda: sum(caller.done() for caller in callers) == 8)  # half of THREADS wait
    assert get(another)

    _store_lease(app, leased, timedelta(seconds=-1))
    assert sorted(caller.result(LONG) for caller in callers) == [False] * 8 + [True] * 4
    assert len(sandbox.calls(grant_type="refresh_token")) == 2


def _store_lease(app: Flask, connection: int, remaining: timedelta) -> None:
    """Store the lease of an attempt whose process was killed."""
    lease = {"attempt_id": "f" * 32, "lease_until": datetime.now(UTC) + remaining}
    with app.app_context(), writing() as db:
        of_connection = AccessToken.spotify_user_id == connection
        db.execute(sa.update(AccessToken).where(of_connection).values(**lease))


@ONE_DATABASE
@pytest.mark.usefixtures("short_long_wait")
def test_hanging_service_blocks_half_of_the_threads_with_refreshes(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    connect(client, sandbox)
    expire_tokens(app)
    sandbox.fault(on="refresh", kind="park", times=None)
    calls = [pool.submit(get_token, client) for _ in range(20)]
    eventually(lambda: sum(one.done() for one in calls) == 16)
    check_rejected([one.result() for one in calls if one.done()])
    sandbox.clear_faults()

    assert sorted(one.result(LONG).status_code for one in calls) == [200] * 4 + [503] * 16


@ONE_DATABASE
@pytest.mark.usefixtures("short_slow_threshold")
def test_hanging_service_blocks_half_of_the_threads_with_exchanges(
    client: FlaskClient, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    register(client)
    callbacks = [sandbox.consent(start_authorization(client)) for _ in range(12)]
    sandbox.fault(on="code", kind="park", times=None)
    calls = [pool.submit(send_callback, another_tab(client), callback) for callback in callbacks]
    sandbox.wait_for_held(4)
    eventually(lambda: sum(one.done() for one in calls) == 8)
    check_rejected([one.result() for one in calls if one.done()])
    assert len(sandbox.calls(path="/api/token")) == 4
    again = next(callback for callback, one in zip(callbacks, calls, strict=True) if one.done())
    sandbox.clear_faults()

    assert sorted(one.result(LONG).status_code for one in calls) == [200] * 4 + [503] * 8
    # Neither its state nor its code was used.
    client.application.extensions["backline"].tokens._bulkhead._deployment.slow_until = 0.0
    assert send_callback(client, again).json["status"] == "connected"


@ONE_DATABASE
@pytest.mark.usefixtures("short_long_wait")
def test_duplicate_callbacks_count_as_waiting_in_another_process(
    client: FlaskClient, another_worker: Flask, sandbox: SandboxClient, pool: ThreadPoolExecutor
) -> None:
    register(client)
    callback = sandbox.consent(start_authorization(client))
    sandbox.fault(on="code", kind="park", times=None)
    first = pool.submit(send_callback, another_tab(client), callback)
    sandbox.wait_for_held(1)
    calls = [pool.submit(send_callback, another_tab(client, another_worker), callback) for _ in range(8)]
    eventually(lambda: sum(one.done() for one in calls) == 4)
    check_rejected([one.result() for one in calls if one.done()])
    sandbox.clear_faults()

    assert first.result(LONG).status_code == 200
    assert sorted(one.result(LONG).status_code for one in calls) == [200] * 4 + [503] * 4


def test_wait_for_a_lost_lock_is_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the limits of production
    assert refresh.LOCK_WAIT_SECONDS <= accounts_bulkhead.LONG_WAIT_SECONDS / 2
