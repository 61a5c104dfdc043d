"""Scripted scenarios. Each breaks one thing at a known moment; together they break everything.

A scenario starts in an empty deployment and asserts what people see. The checker then verifies what happened
to the grants, after enough time for everything to recover.
"""

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import requests
import sqlalchemy as sa

from tests.chaos.browser import Browser
from tests.chaos.checker import Report, check
from tests.chaos.deployment import RecordedDeployment
from tests.helpers.processes import ApiServer, Scheduler
from tests.helpers.sandbox_client import CLIENT_ID
from tests.helpers.servers import eventually

MIRA, JONAS = "mira_t_42", "jonas.k"
BATCH = 6  # connections; fewer than a scheduler's threads
# How long a rotating Spotify accepts the previous refresh token again; see `rotated_token_lost`.
GRACE_SECONDS = 120

Script = Callable[[RecordedDeployment], None]


@dataclass(frozen=True)
class Scenario:
    """A script, and the kind of Spotify that it is for: rotating, not rotating, or both (None).

    Rotation is stricter, so both are only for scenarios in which a response of Spotify matters twice: because
    it is lost, or because it is an error.
    """

    script: Script
    grace_seconds: int
    rotating: bool | None


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, grace_seconds: int = GRACE_SECONDS, rotating: bool | None = None
) -> Callable[[Script], Script]:
    """Register a function as a scenario, under its own name."""

    def register(script: Script) -> Script:
        SCENARIOS[script.__name__] = Scenario(script, grace_seconds, rotating)
        return script

    return register


def scenario_names(*, rotate: bool) -> list[str]:
    """Return the scenarios for a Spotify that rotates refresh tokens, or does not."""
    return [name for name, each in SCENARIOS.items() if each.rotating in (None, rotate)]


def run(
    deployment: RecordedDeployment, name: str, *, rotate: bool, settle: bool = True
) -> tuple[Report, AssertionError | None]:
    """Run one scenario. Returns the checker's report, and the scenario's own failure, if any.

    Without `settle`, or after a failure, it does not wait until all grants are fresh at the end.
    """
    selected, failure = SCENARIOS[name], None
    deployment.reset(rotate=rotate, grace_seconds=selected.grace_seconds)
    try:
        selected.script(deployment)
    except AssertionError as error:
        failure = error
    if settle and failure is None:
        deployment.settle()
    return check(deployment.history()), failure


def where(failure: AssertionError) -> str:
    """Return the traceback of a failure."""
    return "".join(traceback.format_exception(failure)).rstrip()


# Nothing is broken.


@scenario()
def twenty_callers(deployment: RecordedDeployment) -> None:
    """Twenty simultaneous callers on two servers make one call."""
    ada, spotify_user_id = _connected(deployment)
    for round_number in (1, 2):
        deployment.expire(spotify_user_id)
        futures = [deployment.submit(ada.awaited_token, deployment.servers[n % 2]) for n in range(20)]
        responses = [future.result() for future in futures]
        assert {response.status_code for response in responses} == {200}
        assert len({response.json()["access_token"] for response in responses}) == 1
        assert len(deployment.refresh_calls()) == round_number


@scenario()
def many_schedulers(deployment: RecordedDeployment) -> None:
    """All schedulers find many due connections, and make one call for each."""
    people = [person["id"] for person in deployment.sandbox.seed(24)]
    visits = [
        deployment.submit(deployment.visitor, person, deployment.servers[n % 2])
        for n, person in enumerate(people)
    ]
    for visit in visits:
        visit.result()
    deployment.advance_time(3600 - 300)
    deployment.resume_schedulers()
    eventually(lambda: len(deployment.refresh_calls()) >= len(people))
    eventually(lambda: not deployment.stale_connections())
    assert len(deployment.refresh_calls()) == len(people)


# The process that refreshes is paused or killed.


@scenario()
def paused_beyond_lease(deployment: RecordedDeployment) -> None:
    """Another server refreshes during the pause, so the late result is about the previous generation."""
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.recorded_fault("paused", spotify_user_id), deployment.held_refresh():
        late = _start_refresh(deployment, ada, spotify_user_id, victim)
        deployment.pause_server(victim)
        deployment.outlast_lease()
        overtaking = ada.token(other)
        victim.resume()
    assert overtaking.status_code == 200, overtaking.text
    assert late.result().status_code == 200
    assert deployment.row(spotify_user_id).generation == 1


@scenario()
def paused_before_response_arrives(deployment: RecordedDeployment) -> None:
    """The server is paused while Spotify's response is on its way."""
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.recorded_fault("paused", spotify_user_id):
        victim.spotify.hold("down", when=b"access_token")
        deployment.expire(spotify_user_id)
        late = deployment.submit(ada.token, victim)
        victim.spotify.wait_until_held()
        deployment.pause_server(victim)
        deployment.outlast_lease()
        overtaking = ada.token(other)
        victim.spotify.release()
        victim.resume()
    assert overtaking.status_code == 200, overtaking.text
    assert late.result().status_code == 200


@scenario(rotating=True)
def killed_before_call(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    victim.spotify.hold("up", when=b"/api/token")
    deployment.expire(spotify_user_id)
    lost = deployment.submit(ada.token, victim)
    victim.spotify.wait_until_held()
    _kill(deployment, victim, spotify_user_id, lost)
    assert deployment.refresh_calls() == []
    _assert_refreshed_after_lease(deployment, ada, other)
    assert len(deployment.refresh_calls()) == 1


@scenario()
def killed_during_call(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.held_refresh():
        lost = _start_refresh(deployment, ada, spotify_user_id, victim)
        _kill(deployment, victim, spotify_user_id, lost)
    eventually(lambda: deployment.refresh_calls()[0]["finished_at"])
    _assert_refreshed_after_lease(deployment, ada, other)


@scenario()
def killed_after_response(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    victim.spotify.hold("down", when=b"access_token")
    deployment.expire(spotify_user_id)
    lost = deployment.submit(ada.token, victim)
    victim.spotify.wait_until_held()
    _kill(deployment, victim, spotify_user_id, lost)
    _assert_refreshed_after_lease(deployment, ada, other)


@scenario()
def killed_before_update(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.held_refresh():
        lost = _start_refresh(deployment, ada, spotify_user_id, victim)
        victim.database.hold("up", when=b"UPDATE access_tokens")
    victim.database.wait_until_held()
    _kill(deployment, victim, spotify_user_id, lost)
    assert deployment.row(spotify_user_id).generation == 0
    _assert_refreshed_after_lease(deployment, ada, other)


@scenario()
def killed_before_commit(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.held_refresh():
        lost = _start_refresh(deployment, ada, spotify_user_id, victim)
        victim.database.hold("up", when=b"COMMIT", since=b"UPDATE access_tokens")
    victim.database.wait_until_held()
    _kill(deployment, victim, spotify_user_id, lost)
    eventually(deployment.rows_are_unlocked)
    assert deployment.row(spotify_user_id).generation == 0
    _assert_refreshed_after_lease(deployment, ada, other)


@scenario(rotating=True)
def killed_before_unlock(deployment: RecordedDeployment) -> None:
    """The refresh is stored, and only the lock is left behind."""
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.held_refresh():
        lost = _start_refresh(deployment, ada, spotify_user_id, victim)
        victim.redis.hold("up", when=b"lock:")
    victim.redis.wait_until_held()
    _kill(deployment, victim, spotify_user_id, lost)
    assert deployment.row(spotify_user_id).generation == 1
    assert ada.token(other).status_code == 200
    assert len(deployment.refresh_calls()) == 1


@scenario(rotating=True)
def scheduler_killed(deployment: RecordedDeployment) -> None:
    """The other schedulers continue what a killed one had started."""
    ada, spotify_user_id = _connected(deployment)
    with deployment.held_refresh():
        deployment.advance_time(3600 - 300)
        victim = deployment.schedulers[0]
        victim.resume()
        deployment.wait_for_held_refresh()
        deployment.record_fault("killed", spotify_user_id)
        victim.kill()
    deployment.outlast_lease()
    deployment.resume_schedulers()
    eventually(lambda: not deployment.stale_connections())
    assert ada.token(deployment.servers[0]).status_code == 200


# A scheduler works on a batch.


@scenario(rotating=True)
def batch_killed_before_calls(deployment: RecordedDeployment) -> None:
    """All grants of the batch are claimed, and no call reaches Spotify."""
    spotify_user_ids = _due_batch(deployment)
    victim = deployment.schedulers[0]
    victim.spotify.hold("up", when=b"/api/token")
    victim.resume()
    victim.spotify.wait_until_held(BATCH)
    _kill_scheduler(deployment, victim, spotify_user_ids)
    assert deployment.refresh_calls() == []
    _assert_batch_refreshed_after_lease(deployment, spotify_user_ids)
    assert len(deployment.refresh_calls()) == BATCH


@scenario()
def batch_killed_during_calls(deployment: RecordedDeployment) -> None:
    spotify_user_ids = _due_batch(deployment)
    victim = deployment.schedulers[0]
    _start_batch(deployment, victim)
    _kill_scheduler(deployment, victim, spotify_user_ids)
    deployment.sandbox.release()
    _assert_batch_refreshed_after_lease(deployment, spotify_user_ids)


@scenario()
def batch_killed_before_commit(deployment: RecordedDeployment) -> None:
    """The results of the batch are written, but not committed."""
    spotify_user_ids = _due_batch(deployment)
    victim = deployment.schedulers[0]
    _start_batch(deployment, victim)
    victim.database.hold("up", when=b"COMMIT", since=b"UPDATE token_refreshes")
    deployment.sandbox.release()
    victim.database.wait_until_held()
    _kill_scheduler(deployment, victim, spotify_user_ids)
    eventually(deployment.rows_are_unlocked)
    assert {deployment.row(spotify_user_id).generation for spotify_user_id in spotify_user_ids} == {0}
    _assert_batch_refreshed_after_lease(deployment, spotify_user_ids)


@scenario(rotating=True)
def batch_claim_reply_lost(deployment: RecordedDeployment) -> None:
    """The scheduler does not know that it has claimed the batch, so it makes no call."""
    spotify_user_ids = _due_batch(deployment)
    victim = deployment.schedulers[0]
    dropped = victim.database.dropped
    deployment.record_fault("lost COMMIT reply", *spotify_user_ids)
    victim.database.drop_reply(after=b"COMMIT", since=b"INSERT INTO token_refreshes")
    victim.resume()
    victim.database.wait_until_dropped(dropped + 1)
    _assert_batch_refreshed_after_lease(deployment, spotify_user_ids)
    assert len(deployment.refresh_calls()) == BATCH


@scenario(rotating=True)
def batch_commit_reply_lost(deployment: RecordedDeployment) -> None:
    """Each result of the batch is looked up, and those that were committed are not stored again."""
    spotify_user_ids = _due_batch(deployment)
    victim = deployment.schedulers[0]
    dropped = victim.database.dropped
    _start_batch(deployment, victim)
    deployment.record_fault("lost COMMIT reply", *spotify_user_ids)
    victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE token_refreshes")
    deployment.sandbox.release()
    victim.database.wait_until_dropped(dropped + 1)
    _assert_batch_stored(deployment, spotify_user_ids)


@scenario(rotating=True)
def mariadb_killed_during_group_commit(deployment: RecordedDeployment) -> None:
    """The results of the batch are stored when MariaDB is back, without further calls."""
    spotify_user_ids = _due_batch(deployment)
    victim = deployment.schedulers[0]
    _start_batch(deployment, victim)
    failed = victim.log.count("refresh_pass_failed")
    with deployment.recorded_fault("mariadb killed"):
        victim.database.hold("up", when=b"COMMIT", since=b"UPDATE token_refreshes")
        deployment.sandbox.release()
        victim.database.wait_until_held()
        deployment.database.kill()
        victim.database.release()
        deployment.database.start()
    # A failed pass ends when everything is stored.
    eventually(lambda: not deployment.stale_connections() or victim.log.count("refresh_pass_failed") > failed)
    assert not deployment.stale_connections()
    _assert_batch_stored(deployment, spotify_user_ids)


@scenario(rotating=True)
def locked_row_in_group_commit(deployment: RecordedDeployment) -> None:
    """One row of the batch is locked, and its transaction ends in a deadlock. The others do not wait."""
    spotify_user_ids = _due_batch(deployment)
    blocked, *others = spotify_user_ids
    victim = deployment.schedulers[0]
    _start_batch(deployment, victim)
    where = {"spotify_user_id": blocked}
    deployment.record_fault("deadlock", blocked)
    with deployment.engine.connect() as connection:
        grant = "SELECT 1 FROM access_tokens WHERE spotify_user_id = :spotify_user_id FOR UPDATE"
        connection.execute(sa.text(grant), where)
        deployment.sandbox.release()
        eventually(lambda: all(deployment.row(other).generation == 1 for other in others))
        attempt = "SELECT 1 FROM token_refreshes WHERE spotify_user_id = :spotify_user_id FOR UPDATE"
        with suppress(sa.exc.OperationalError):  # one of the two transactions is rolled back
            connection.execute(sa.text(attempt), where)
    _assert_batch_stored(deployment, spotify_user_ids)


# Replies are lost.


@scenario(rotating=True)
def claim_commit_reply_lost(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    deployment.record_fault("lost COMMIT reply", spotify_user_id)
    victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
    deployment.expire(spotify_user_id)
    ada.token(victim)
    victim.database.wait_until_dropped()
    deployment.outlast_lease()
    assert ada.token(other).status_code == 200


@scenario(rotating=True)
def commit_reply_lost(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.held_refresh():
        future = _start_refresh(deployment, ada, spotify_user_id, victim)
        deployment.record_fault("lost COMMIT reply", spotify_user_id)
        victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
    victim.database.wait_until_dropped()
    future.result()
    assert ada.token(other).status_code == 200
    assert deployment.row(spotify_user_id).generation == 1
    assert len(deployment.refresh_calls()) == 1


@scenario(rotating=True)
def lock_reply_lost(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim = deployment.servers[0]
    deployment.record_fault("lost lock reply", spotify_user_id)
    victim.redis.drop_reply(after=b"lock:")
    deployment.expire(spotify_user_id)
    assert ada.token(victim).status_code == 200
    assert victim.redis.dropped
    assert len(deployment.refresh_calls()) == 1


@scenario(rotating=True)
def unlock_reply_lost(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.held_refresh():
        future = _start_refresh(deployment, ada, spotify_user_id, victim)
        deployment.record_fault("lost unlock reply", spotify_user_id)
        victim.redis.drop_reply(after=b"lock:")
    assert future.result().status_code == 200
    deployment.expire(spotify_user_id)
    assert ada.token(other).status_code == 200
    assert len(deployment.refresh_calls()) == 2


@scenario()
def response_lost(deployment: RecordedDeployment) -> None:
    """Spotify refreshes, but its response is lost."""
    ada, spotify_user_id = _connected(deployment)
    deployment.sandbox.fault(on="refresh", kind="close", times=1, after_effect=True)
    deployment.expire(spotify_user_id)
    assert ada.token(deployment.servers[0]).status_code == 503


@scenario(grace_seconds=0, rotating=True)
def rotated_token_lost(deployment: RecordedDeployment) -> None:
    """The only way to lose a grant: Spotify rotates without a grace period, and its response is lost."""
    ada, spotify_user_id = _connected(deployment)
    deployment.sandbox.fault(on="refresh", kind="close", times=1, after_effect=True)
    deployment.expire(spotify_user_id)
    assert ada.token(deployment.servers[0]).status_code == 503
    _confirm_rejection(deployment, ada, spotify_user_id)
    assert deployment.row(spotify_user_id).state == "reauthorization_required"


# Redis is down.


@scenario(rotating=True)
def redis_flushed(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    with deployment.held_refresh():
        future = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
        deployment.record_fault("redis flushed", spotify_user_id)
        deployment.redis.client.flushall()
        again = ada.another()
        assert again.login(deployment.servers[1]).status_code == 200
        other = deployment.submit(again.token, deployment.servers[1])
        eventually(lambda: deployment.redis.client.keys("lock:*") or other.done())
    assert {future.result().status_code, other.result().status_code} == {200}
    assert len(deployment.refresh_calls()) == 1


@scenario(rotating=True)
def redis_killed(deployment: RecordedDeployment) -> None:
    """Without Redis there are no sessions and no locks, but running refreshes and schedulers continue."""
    ada, spotify_user_id = _connected(deployment)
    bob, second = _connected(deployment, JONAS)
    with deployment.recorded_fault("redis down"):
        with deployment.held_refresh():
            future = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
            deployment.redis.kill()
        assert future.result().status_code == 200
        deployment.advance_time(3600 - 300)
        deployment.resume_schedulers()
        eventually(lambda: not deployment.stale_connections())
        assert ada.token(deployment.servers[1]).status_code == 503
        deployment.pause_schedulers()
        deployment.redis.start()
    assert bob.login(deployment.servers[1]).status_code == 200
    assert bob.token(deployment.servers[1]).status_code == 200
    assert deployment.row(second).generation == 1


@scenario(rotating=True)
def redis_blackholed(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.recorded_fault("redis stalled", spotify_user_id):
        with deployment.held_refresh():
            future = _start_refresh(deployment, ada, spotify_user_id, victim)
            victim.redis.blackhole()
        assert future.result().status_code == 200
        victim.redis.restore()
    assert ada.token(other).status_code == 200
    assert len(deployment.refresh_calls()) == 1


# MariaDB is down.


@scenario(rotating=True)
def mariadb_unreachable_before_commit(deployment: RecordedDeployment) -> None:
    """Spotify's response waits until it can be stored."""
    ada, spotify_user_id = _connected(deployment)
    victim, other = deployment.servers[:2]
    with deployment.recorded_fault("mariadb unreachable", spotify_user_id):
        with deployment.held_refresh():
            future = _start_refresh(deployment, ada, spotify_user_id, victim)
            victim.database.refuse()
        eventually(lambda: deployment.refresh_calls()[0]["finished_at"])
        # Long enough for the server to notice the fault.
        _wait_briefly(future, 0.3)
        victim.database.restore()
    future.result()
    if deployment.row(spotify_user_id).generation == 0:
        deployment.outlast_lease()
    assert ada.token(other).status_code == 200


@scenario(rotating=True)
def mariadb_killed_during_a_refresh(deployment: RecordedDeployment) -> None:
    """MariaDB is killed and restarted. What was committed is still there."""
    ada, spotify_user_id = _connected(deployment)
    deployment.expire(spotify_user_id)
    assert ada.token(deployment.servers[1]).status_code == 200
    with deployment.recorded_fault("mariadb killed"):
        with deployment.held_refresh():
            future = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
            deployment.database.kill()
            assert ada.token(deployment.servers[1]).status_code == 503
            deployment.database.start()
        future.result()
    assert deployment.row(spotify_user_id).generation >= 1
    if deployment.row(spotify_user_id).generation == 1:
        deployment.outlast_lease()
    assert ada.token(deployment.servers[1]).status_code == 200


@scenario(rotating=True)
def mariadb_paused_briefly(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    with deployment.recorded_fault("mariadb stopped"):
        with deployment.held_refresh():
            future = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
            deployment.database.pause()
        _wait_briefly(future, 0.5)
        deployment.database.resume()
    assert future.result().status_code == 200
    assert deployment.row(spotify_user_id).generation == 1


# People act during a refresh.


@scenario(rotating=True)
def new_consent_during_refresh(deployment: RecordedDeployment) -> None:
    """The response for the old grant must not change the new one."""
    ada, spotify_user_id = _connected(deployment)
    with deployment.held_refresh():
        late = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
        deployment.consent_again(MIRA, deployment.servers[1])
        renewed = deployment.row(spotify_user_id)
    late.result()
    after = deployment.row(spotify_user_id)
    assert (after.grant_id, after.generation) == (renewed.grant_id, 0)
    assert after.access_token == renewed.access_token
    assert ada.token(deployment.servers[1]).status_code == 200


@scenario(rotating=True)
def rejection_after_new_consent(deployment: RecordedDeployment) -> None:
    """A rejection of the old grant must not change the new one."""
    ada, spotify_user_id = _connected(deployment)
    deployment.sandbox.fault(on="refresh", kind="park", times=1)
    late = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
    deployment.revoke(MIRA)
    deployment.consent_again(MIRA, deployment.servers[1])
    deployment.sandbox.release()
    late.result()
    assert (deployment.row(spotify_user_id).state, deployment.row(spotify_user_id).generation) == (
        "active",
        0,
    )


@scenario(rotating=True)
def disconnect_during_refresh(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    with deployment.held_refresh():
        late = _start_refresh(deployment, ada, spotify_user_id, deployment.servers[0])
        assert ada.disconnect(deployment.servers[1]).status_code == 204
    assert late.result().status_code == 409
    assert deployment.row(spotify_user_id) is None


# Spotify rejects calls or fails.


@scenario()
def revoked(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    deployment.expire(spotify_user_id)
    deployment.revoke(MIRA)
    _confirm_rejection(deployment, ada, spotify_user_id)
    assert deployment.row(spotify_user_id).state == "reauthorization_required"
    deployment.consent_again(MIRA, deployment.servers[0])
    assert deployment.row(spotify_user_id).state == "active"
    assert ada.token(deployment.servers[1]).status_code == 200


@scenario()
def grant_falsely_rejected(deployment: RecordedDeployment) -> None:
    ada, spotify_user_id = _connected(deployment)
    deployment.sandbox.fault(on="refresh", kind="false_invalid_grant", times=1)
    deployment.expire(spotify_user_id)
    assert ada.token(deployment.servers[0]).status_code == 409
    assert deployment.row(spotify_user_id).state == "suspect"
    deployment.advance_time(15 * 60 + 1)
    assert ada.token(deployment.servers[1]).status_code == 200
    assert deployment.row(spotify_user_id).state == "active"


@scenario()
def spotify_errors(deployment: RecordedDeployment) -> None:
    """No connection is lost whatever Spotify responds, and all work again when it does."""
    ada, spotify_user_id = _connected(deployment)
    for kind in ("google_502", "truncated_json", "close", "rate_limited"):
        deployment.expire(spotify_user_id)
        deployment.sandbox.fault(on="refresh", kind=kind, times=1, retry_after=7)
        assert ada.token(deployment.servers[0]).status_code in (429, 503)
        assert deployment.row(spotify_user_id).state == "active"
        deployment.advance_time(20)
        assert ada.token(deployment.servers[1]).status_code == 200


@scenario(grace_seconds=0)
def response_without_access_token(deployment: RecordedDeployment) -> None:
    """The new refresh token is kept, because the old one may be used up."""
    ada, spotify_user_id = _connected(deployment)
    for access_token in (None, 17):
        deployment.expire(spotify_user_id)
        members = {"access_token": access_token}
        deployment.sandbox.fault(
            on="refresh", kind="changed_members", members=members, times=1, after_effect=True
        )
        assert ada.token(deployment.servers[0]).status_code == 503
        deployment.advance_time(20)
        assert ada.token(deployment.servers[1]).status_code == 200
    assert [call["status"] for call in deployment.refresh_calls()] == [200] * 4


# People use applications of their own.


@scenario(rotating=False)
def own_application_broken(deployment: RecordedDeployment) -> None:
    """Others are refreshed, and the broken one costs one call for each pause, until it is repaired."""
    people = [person["id"] for person in deployment.sandbox.seed(4)]
    browser, broken = deployment.connected_with_own_application(people[0])
    own = [broken]
    for person, public in ((people[1], False), (people[2], True)):
        own.append(deployment.connected_with_own_application(person, public=public)[1])
    deployment.visitor(people[3])
    spotify_user_id, *others = [deployment.spotify_user_id_of(person) for person in people]
    deployment.sandbox.change_application(broken["client_id"], client_secret="another-secret-of-this-one")
    deployment.record_fault("wrong secret", spotify_user_id)
    deployment.advance_time(3600 - 300)
    deployment.resume_schedulers()
    eventually(lambda: len(deployment.refresh_calls()) >= len(people))
    client_ids = {CLIENT_ID, *(application["client_id"] for application in own)}
    assert {call["client_id"] for call in deployment.refresh_calls()} == client_ids
    eventually(lambda: {deployment.row(other).generation for other in others} == {1})
    eventually(lambda: deployment.sql("SELECT 1 FROM spotify_apps WHERE state = 'refused'"))
    deployment.expire(spotify_user_id)
    deployment.advance_time(20)  # longer than the backoff of the grant, but not than the pause
    assert browser.token(deployment.servers[0]).status_code == 409
    calls = deployment.sandbox.calls(grant_type="refresh_token", client_id=broken["client_id"])
    assert len(calls) == 1
    assert deployment.sql("SELECT name FROM breakers WHERE closed_at IS NULL") == []
    deployment.sandbox.change_application(broken["client_id"], client_secret=broken["client_secret"])
    assert browser.bring(broken, deployment.servers[1], public=False).status_code == 200
    assert browser.awaited_token(deployment.servers[1]).status_code == 200


@scenario(rotating=False)
def application_replaced_during_refresh(deployment: RecordedDeployment) -> None:
    """The response to the old application's call writes nothing to the new connection."""
    browser, _ = deployment.connected_with_own_application(MIRA, public=True)
    [other] = deployment.sandbox.create_applications(1, quota="extended")
    with deployment.held_refresh():
        late = _start_refresh(deployment, browser, deployment.spotify_user_id_of(MIRA), deployment.servers[0])
        assert browser.bring(other, deployment.servers[1], public=False).status_code == 200
        assert browser.connect(deployment.servers[1]).status_code == 200
    late.result()
    row = deployment.row(deployment.spotify_user_id_of(MIRA))
    assert (row.client_id, row.generation) == (other["client_id"], 0)
    assert browser.token(deployment.servers[1]).status_code == 200


@scenario(rotating=False)
def applications_restored_alone(deployment: RecordedDeployment) -> None:
    """The row of an application has an earlier client id, with which the token must not be sent."""
    browser, own = deployment.connected_with_own_application(MIRA)
    spotify_user_id = deployment.spotify_user_id_of(MIRA)
    [earlier] = deployment.sandbox.create_applications(1, quota="extended")
    change = "UPDATE spotify_apps SET client_id = :client_id"
    deployment.sql(change, client_id=earlier["client_id"])
    deployment.expire(spotify_user_id)
    assert browser.token(deployment.servers[0]).status_code == 409
    assert deployment.refresh_calls() == []
    deployment.sql(change, client_id=own["client_id"])
    assert browser.token(deployment.servers[1]).status_code == 200


def _connected(deployment: RecordedDeployment, person: str = MIRA) -> tuple[Browser, int]:
    browser = deployment.connected(person)
    return browser, deployment.spotify_user_id_of(person)


def _start_refresh(
    deployment: RecordedDeployment, browser: Browser, spotify_user_id: int, server: ApiServer
) -> "Future[requests.Response]":
    """Request a token that has expired, and wait until Spotify has received the call."""
    deployment.expire(spotify_user_id)
    future = deployment.submit(browser.token, server)
    deployment.wait_for_held_refresh()
    return future


def _due_batch(deployment: RecordedDeployment) -> list[int]:
    """Connect people whose tokens are due. The schedulers are paused, and claim them together.

    Two of them use applications of their own.
    """
    people = [person["id"] for person in deployment.sandbox.seed(BATCH)]
    *others, confidential, public = people
    for person in others:
        deployment.visitor(person)
    deployment.connected_with_own_application(confidential)
    deployment.connected_with_own_application(public, public=True)
    deployment.advance_time(3600 - 300)
    return [deployment.spotify_user_id_of(person) for person in people]


def _start_batch(deployment: RecordedDeployment, scheduler: Scheduler) -> None:
    """Let a scheduler claim the batch, and wait until Spotify has received all calls."""
    deployment.sandbox.fault(on="refresh", kind="park", times=BATCH)
    scheduler.resume()
    deployment.wait_for_held_refresh(BATCH)


def _kill_scheduler(deployment: RecordedDeployment, victim: Scheduler, spotify_user_ids: list[int]) -> None:
    """Kill a scheduler, and release what delayed it."""
    deployment.record_fault("killed", *spotify_user_ids)
    victim.kill()
    for proxy in victim.proxies:
        proxy.restore()


def _assert_batch_refreshed_after_lease(deployment: RecordedDeployment, spotify_user_ids: list[int]) -> None:
    """Assert that the schedulers refresh the batch after its leases."""
    deployment.outlast_lease()
    deployment.resume_schedulers()
    eventually(lambda: not deployment.stale_connections())
    assert {deployment.row(spotify_user_id).generation for spotify_user_id in spotify_user_ids} == {1}


def _assert_batch_stored(deployment: RecordedDeployment, spotify_user_ids: list[int]) -> None:
    """Assert that each grant is refreshed with one call."""
    eventually(lambda: not deployment.stale_connections())
    assert {deployment.row(spotify_user_id).generation for spotify_user_id in spotify_user_ids} == {1}
    assert len(deployment.refresh_calls()) == BATCH


def _kill(
    deployment: RecordedDeployment, victim: ApiServer, spotify_user_id: int, lost: "Future[requests.Response]"
) -> None:
    """Kill the server that is refreshing, and release what delayed it."""
    deployment.record_fault("killed", spotify_user_id)
    victim.kill_worker()
    assert isinstance(lost.exception(), requests.ConnectionError)
    for proxy in victim.proxies:
        proxy.restore()


def _assert_refreshed_after_lease(
    deployment: RecordedDeployment, browser: Browser, server: ApiServer
) -> None:
    """Assert that another server refreshes after the lease of the dead one."""
    deployment.outlast_lease()
    response = browser.token(server)
    assert response.status_code == 200, response.text


def _confirm_rejection(deployment: RecordedDeployment, browser: Browser, spotify_user_id: int) -> None:
    """Request tokens, with the required waits, until a rejected grant has ended."""
    for wait in (60, 15 * 60 + 1, 24 * 3600 + 1):
        assert browser.token(deployment.servers[0]).status_code == 409 or wait == 60
        if deployment.row(spotify_user_id).state == "active":  # a backoff after a failure came first
            deployment.advance_time(wait)
            assert browser.token(deployment.servers[1]).status_code == 409
        elif wait != 60:
            assert deployment.row(spotify_user_id).state == "suspect"
            deployment.advance_time(wait)
    browser.token(deployment.servers[1])


def _wait_briefly(future: "Future[requests.Response]", seconds: float) -> None:
    """Wait for a result, but no longer than this."""
    try:
        future.result(seconds)
    except TimeoutError:
        return
