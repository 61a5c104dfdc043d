"""Scripted scenarios. Each breaks one thing at a known moment; together they break everything.

A scenario starts in an empty world and asserts what people see. The checker then verifies what happened to
the grants, after enough time for everything to recover.
"""

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import requests

from tests.chaos.checker import Report, check
from tests.chaos.processes import ApiServer
from tests.chaos.world import Browser, World
from tests.helpers.servers import eventually

MIRA, JONAS = "mira_t_42", "jonas.k"
# How long a rotating Spotify accepts the previous refresh token again; see `rotated_token_lost`.
GRACE_SECONDS = 120

Script = Callable[[World], None]


@dataclass(frozen=True)
class Scenario:
    """A script, and the kind of Spotify that it is for: rotating, not rotating, or both (None)."""

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
    world: World, name: str, *, rotate: bool, settle: bool = True
) -> tuple[Report, AssertionError | None]:
    """Run one scenario. Returns the checker's report, and the scenario's own failure, if any.

    Without `settle`, it does not wait until all grants are fresh at the end.
    """
    selected, failure = SCENARIOS[name], None
    world.reset(rotate=rotate, grace_seconds=selected.grace_seconds if rotate else 0)
    try:
        selected.script(world)
    except AssertionError as error:
        failure = error
    if settle:
        world.settle()
    return check(world.history()), failure


def where(failure: AssertionError) -> str:
    """Return the traceback of a failure."""
    return "".join(traceback.format_exception(failure)).rstrip()


# Nothing is broken.


@scenario()
def twenty_callers(world: World) -> None:
    """Twenty simultaneous callers on two servers make one call."""
    ada, spotify_user_id = _connected(world)
    for round_number in (1, 2):
        world.expire(spotify_user_id)
        asked = [world.submit(ada.awaited_token, world.servers[n % 2]) for n in range(20)]
        answers = [future.result() for future in asked]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert len(world.refresh_calls()) == round_number


@scenario()
def many_schedulers(world: World) -> None:
    """All schedulers find many due connections, and make one call for each."""
    people = [person["id"] for person in world.sandbox.seed(24)]
    visits = [world.submit(world.visitor, person, world.servers[n % 2]) for n, person in enumerate(people)]
    for visit in visits:
        visit.result()
    world.advance_time(3600 - 300)
    world.resume_schedulers()
    eventually(lambda: len(world.refresh_calls()) >= len(people))
    eventually(lambda: not world.stale_connections())
    assert len(world.refresh_calls()) == len(people)


# The process that refreshes is paused or killed.


@scenario()
def paused_beyond_lease(world: World) -> None:
    """Another server refreshes during the pause, so the late result is about the previous generation."""
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.recorded_fault("paused", spotify_user_id), world.held_refresh():
        late = _start_refresh(world, ada, spotify_user_id, victim)
        victim.pause()
        world.outlast_lease()
        overtaking = ada.token(other)
        victim.resume()
    assert overtaking.status_code == 200, overtaking.text
    assert late.result().status_code == 200
    assert world.row(spotify_user_id).generation == 1


@scenario()
def paused_before_response_arrives(world: World) -> None:
    """The server is paused while Spotify's response is on its way."""
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.recorded_fault("paused", spotify_user_id):
        victim.spotify.hold("down", when=b"access_token")
        world.expire(spotify_user_id)
        late = world.submit(ada.token, victim)
        victim.spotify.wait_held()
        victim.pause()
        world.outlast_lease()
        overtaking = ada.token(other)
        victim.spotify.release()
        victim.resume()
    assert overtaking.status_code == 200, overtaking.text
    assert late.result().status_code == 200


@scenario()
def killed_before_call(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    victim.spotify.hold("up", when=b"/api/token")
    world.expire(spotify_user_id)
    lost = world.submit(ada.token, victim)
    victim.spotify.wait_held()
    _kill(world, victim, spotify_user_id, lost)
    assert world.refresh_calls() == []
    _assert_refreshed_after_lease(world, ada, other)
    assert len(world.refresh_calls()) == 1


@scenario()
def killed_during_call(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.held_refresh():
        lost = _start_refresh(world, ada, spotify_user_id, victim)
        _kill(world, victim, spotify_user_id, lost)
    eventually(lambda: world.refresh_calls()[0]["finished_at"])
    _assert_refreshed_after_lease(world, ada, other)


@scenario()
def killed_after_response(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    victim.spotify.hold("down", when=b"access_token")
    world.expire(spotify_user_id)
    lost = world.submit(ada.token, victim)
    victim.spotify.wait_held()
    _kill(world, victim, spotify_user_id, lost)
    _assert_refreshed_after_lease(world, ada, other)


@scenario()
def killed_before_update(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.held_refresh():
        lost = _start_refresh(world, ada, spotify_user_id, victim)
        victim.database.hold("up", when=b"UPDATE access_tokens")
    victim.database.wait_held()
    _kill(world, victim, spotify_user_id, lost)
    assert world.row(spotify_user_id).generation == 0
    _assert_refreshed_after_lease(world, ada, other)


@scenario()
def killed_before_commit(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.held_refresh():
        lost = _start_refresh(world, ada, spotify_user_id, victim)
        victim.database.hold("up", when=b"COMMIT", since=b"UPDATE access_tokens")
    victim.database.wait_held()
    _kill(world, victim, spotify_user_id, lost)
    eventually(world.rows_are_free)
    assert world.row(spotify_user_id).generation == 0
    _assert_refreshed_after_lease(world, ada, other)


@scenario()
def killed_before_unlock(world: World) -> None:
    """The refresh is stored, and only the lock is left behind."""
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.held_refresh():
        lost = _start_refresh(world, ada, spotify_user_id, victim)
        victim.redis.hold("up", when=b"lock:")
    victim.redis.wait_held()
    _kill(world, victim, spotify_user_id, lost)
    assert world.row(spotify_user_id).generation == 1
    assert ada.token(other).status_code == 200
    assert len(world.refresh_calls()) == 1


@scenario()
def scheduler_killed(world: World) -> None:
    """The other schedulers continue what a killed one had started."""
    ada, spotify_user_id = _connected(world)
    with world.held_refresh():
        world.advance_time(3600 - 300)
        victim = world.schedulers[0]
        victim.resume()
        world.wait_for_held_refresh()
        world.record_fault("killed", spotify_user_id)
        victim.kill()
    world.outlast_lease()
    world.resume_schedulers()
    eventually(lambda: not world.stale_connections())
    assert ada.token(world.servers[0]).status_code == 200


# Replies are lost.


@scenario()
def claim_commit_reply_lost(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    world.record_fault("lost COMMIT reply", spotify_user_id)
    victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
    world.expire(spotify_user_id)
    ada.token(victim)
    victim.database.wait_dropped()
    world.outlast_lease()
    assert ada.token(other).status_code == 200


@scenario()
def commit_reply_lost(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.held_refresh():
        asked = _start_refresh(world, ada, spotify_user_id, victim)
        world.record_fault("lost COMMIT reply", spotify_user_id)
        victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
    victim.database.wait_dropped()
    asked.result()
    assert ada.token(other).status_code == 200
    assert world.row(spotify_user_id).generation == 1
    assert len(world.refresh_calls()) == 1


@scenario()
def lock_reply_lost(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim = world.servers[0]
    world.record_fault("lost lock reply", spotify_user_id)
    victim.redis.drop_reply(after=b"lock:")
    world.expire(spotify_user_id)
    assert ada.token(victim).status_code == 200
    assert victim.redis.dropped
    assert len(world.refresh_calls()) == 1


@scenario()
def unlock_reply_lost(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.held_refresh():
        asked = _start_refresh(world, ada, spotify_user_id, victim)
        world.record_fault("lost unlock reply", spotify_user_id)
        victim.redis.drop_reply(after=b"lock:")
    assert asked.result().status_code == 200
    world.expire(spotify_user_id)
    assert ada.token(other).status_code == 200
    assert len(world.refresh_calls()) == 2


@scenario()
def response_lost(world: World) -> None:
    """Spotify refreshes, but its response is lost."""
    ada, spotify_user_id = _connected(world)
    world.sandbox.fault(on="refresh", kind="close", times=1, after_effect=True)
    world.expire(spotify_user_id)
    assert ada.token(world.servers[0]).status_code == 503


@scenario(grace_seconds=0, rotating=True)
def rotated_token_lost(world: World) -> None:
    """The only way to lose a grant: Spotify rotates without a grace period, and its response is lost."""
    ada, spotify_user_id = _connected(world)
    world.sandbox.fault(on="refresh", kind="close", times=1, after_effect=True)
    world.expire(spotify_user_id)
    assert ada.token(world.servers[0]).status_code == 503
    _confirm_refusal(world, ada, spotify_user_id)
    assert world.row(spotify_user_id).state == "reauthorization_required"


# Redis is down.


@scenario()
def redis_flushed(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    with world.held_refresh():
        asked = _start_refresh(world, ada, spotify_user_id, world.servers[0])
        world.record_fault("redis flushed", spotify_user_id)
        world.redis.client.flushall()
        again = ada.another()
        assert again.login(world.servers[1]).status_code == 200
        other = world.submit(again.token, world.servers[1])
        eventually(lambda: world.redis.client.keys("lock:*") or other.done())
    assert {asked.result().status_code, other.result().status_code} == {200}
    assert len(world.refresh_calls()) == 1


@scenario()
def redis_killed(world: World) -> None:
    """Without Redis there are no sessions and no locks, but running refreshes and schedulers continue."""
    ada, spotify_user_id = _connected(world)
    bob, second = _connected(world, JONAS)
    with world.recorded_fault("redis down"):
        with world.held_refresh():
            asked = _start_refresh(world, ada, spotify_user_id, world.servers[0])
            world.redis.kill()
        assert asked.result().status_code == 200
        world.advance_time(3600 - 300)
        world.resume_schedulers()
        eventually(lambda: not world.stale_connections())
        assert ada.token(world.servers[1]).status_code == 503
        world.pause_schedulers()
        world.redis.start()
    assert bob.login(world.servers[1]).status_code == 200
    assert bob.token(world.servers[1]).status_code == 200
    assert world.row(second).generation == 1


@scenario()
def redis_blackholed(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.recorded_fault("redis stalled", spotify_user_id):
        with world.held_refresh():
            asked = _start_refresh(world, ada, spotify_user_id, victim)
            victim.redis.blackhole()
        assert asked.result().status_code == 200
        victim.redis.restore()
    assert ada.token(other).status_code == 200
    assert len(world.refresh_calls()) == 1


# MariaDB is down.


@scenario()
def mariadb_unreachable_before_commit(world: World) -> None:
    """Spotify's response waits until it can be stored."""
    ada, spotify_user_id = _connected(world)
    victim, other = world.servers[:2]
    with world.recorded_fault("mariadb unreachable", spotify_user_id):
        with world.held_refresh():
            asked = _start_refresh(world, ada, spotify_user_id, victim)
            victim.database.refuse()
        eventually(lambda: world.refresh_calls()[0]["finished_at"])
        # Long enough for the server to notice the fault.
        _wait_briefly(asked, 1.0)
        victim.database.restore()
    asked.result()
    if world.row(spotify_user_id).generation == 0:
        world.outlast_lease()
    assert ada.token(other).status_code == 200


@scenario()
def mariadb_killed_during_a_refresh(world: World) -> None:
    """MariaDB is killed and restarted. What was committed is still there."""
    ada, spotify_user_id = _connected(world)
    world.expire(spotify_user_id)
    assert ada.token(world.servers[1]).status_code == 200
    with world.recorded_fault("mariadb killed"):
        with world.held_refresh():
            asked = _start_refresh(world, ada, spotify_user_id, world.servers[0])
            world.database.kill()
            assert ada.token(world.servers[1]).status_code == 503
            world.database.start()
        asked.result()
    assert world.row(spotify_user_id).generation >= 1
    if world.row(spotify_user_id).generation == 1:
        world.outlast_lease()
    assert ada.token(world.servers[1]).status_code == 200


@scenario()
def mariadb_paused_briefly(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    with world.recorded_fault("mariadb stopped"):
        with world.held_refresh():
            asked = _start_refresh(world, ada, spotify_user_id, world.servers[0])
            world.database.pause()
        _wait_briefly(asked, 0.5)
        world.database.resume()
    assert asked.result().status_code == 200
    assert world.row(spotify_user_id).generation == 1


# People act during a refresh.


@scenario()
def new_consent_during_refresh(world: World) -> None:
    """The response for the old grant must not change the new one."""
    ada, spotify_user_id = _connected(world)
    with world.held_refresh():
        late = _start_refresh(world, ada, spotify_user_id, world.servers[0])
        world.consent_again(MIRA, world.servers[1])
        renewed = world.row(spotify_user_id)
    late.result()
    after = world.row(spotify_user_id)
    assert (after.grant_id, after.generation) == (renewed.grant_id, 0)
    assert after.access_token == renewed.access_token
    assert ada.token(world.servers[1]).status_code == 200


@scenario()
def refusal_after_new_consent(world: World) -> None:
    """A refusal of the old grant must not change the new one."""
    ada, spotify_user_id = _connected(world)
    world.sandbox.fault(on="refresh", kind="park", times=1)
    late = _start_refresh(world, ada, spotify_user_id, world.servers[0])
    world.revoke(MIRA)
    world.consent_again(MIRA, world.servers[1])
    world.sandbox.release()
    late.result()
    assert (world.row(spotify_user_id).state, world.row(spotify_user_id).generation) == ("active", 0)


@scenario()
def disconnect_during_refresh(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    with world.held_refresh():
        late = _start_refresh(world, ada, spotify_user_id, world.servers[0])
        assert ada.disconnect(world.servers[1]).status_code == 204
    assert late.result().status_code == 409
    assert world.row(spotify_user_id) is None


# Spotify refuses or fails.


@scenario()
def revoked(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    world.expire(spotify_user_id)
    world.revoke(MIRA)
    _confirm_refusal(world, ada, spotify_user_id)
    assert world.row(spotify_user_id).state == "reauthorization_required"
    world.consent_again(MIRA, world.servers[0])
    assert world.row(spotify_user_id).state == "active"
    assert ada.token(world.servers[1]).status_code == 200


@scenario()
def grant_falsely_refused(world: World) -> None:
    ada, spotify_user_id = _connected(world)
    world.sandbox.fault(on="refresh", kind="false_invalid_grant", times=1)
    world.expire(spotify_user_id)
    assert ada.token(world.servers[0]).status_code == 409
    assert world.row(spotify_user_id).state == "suspect"
    world.advance_time(15 * 60 + 1)
    assert ada.token(world.servers[1]).status_code == 200
    assert world.row(spotify_user_id).state == "active"


@scenario()
def spotify_errors(world: World) -> None:
    """No connection is lost whatever Spotify responds, and all work again when it does."""
    ada, spotify_user_id = _connected(world)
    for kind in ("google_502", "truncated_json", "close", "rate_limited"):
        world.expire(spotify_user_id)
        world.sandbox.fault(on="refresh", kind=kind, times=1, retry_after=7)
        assert ada.token(world.servers[0]).status_code in (429, 503)
        assert world.row(spotify_user_id).state == "active"
        world.advance_time(20)
        assert ada.token(world.servers[1]).status_code == 200


@scenario(grace_seconds=0)
def response_without_access_token(world: World) -> None:
    """The new refresh token is kept, because the old one may be used up."""
    ada, spotify_user_id = _connected(world)
    for access_token in (None, 17):
        world.expire(spotify_user_id)
        members = {"access_token": access_token}
        world.sandbox.fault(on="refresh", kind="changed_members", members=members, times=1, after_effect=True)
        assert ada.token(world.servers[0]).status_code == 503
        world.advance_time(20)
        assert ada.token(world.servers[1]).status_code == 200
    assert [call["status"] for call in world.refresh_calls()] == [200] * 4


def _connected(world: World, person: str = MIRA) -> tuple[Browser, int]:
    browser = world.connected(person)
    return browser, world.spotify_user_id_of(person)


def _start_refresh(
    world: World, browser: Browser, spotify_user_id: int, server: ApiServer
) -> "Future[requests.Response]":
    """Request a token that has expired, and wait until Spotify has received the call."""
    world.expire(spotify_user_id)
    asked = world.submit(browser.token, server)
    world.wait_for_held_refresh()
    return asked


def _kill(world: World, victim: ApiServer, spotify_user_id: int, lost: "Future[requests.Response]") -> None:
    """Kill the server that is refreshing, and release what delayed it."""
    world.record_fault("killed", spotify_user_id)
    victim.kill_worker()
    assert isinstance(lost.exception(), requests.ConnectionError)
    for proxy in victim.proxies:
        proxy.restore()


def _assert_refreshed_after_lease(world: World, browser: Browser, server: ApiServer) -> None:
    """Assert that another server refreshes after the lease of the dead one."""
    world.outlast_lease()
    response = browser.token(server)
    assert response.status_code == 200, response.text


def _confirm_refusal(world: World, browser: Browser, spotify_user_id: int) -> None:
    """Request tokens, with the required waits, until a refused grant has ended."""
    for wait in (60, 15 * 60 + 1, 24 * 3600 + 1):
        assert browser.token(world.servers[0]).status_code == 409 or wait == 60
        if world.row(spotify_user_id).state == "active":  # a backoff after a failure came first
            world.advance_time(wait)
            assert browser.token(world.servers[1]).status_code == 409
        elif wait != 60:
            assert world.row(spotify_user_id).state == "suspect"
            world.advance_time(wait)
    browser.token(world.servers[1])


def _wait_briefly(future: "Future[requests.Response]", seconds: float) -> None:
    """Wait for a result, but no longer than this."""
    try:
        future.result(seconds)
    except TimeoutError:
        return
