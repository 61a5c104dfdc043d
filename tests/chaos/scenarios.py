"""Scripted scenarios. Together they break everything that can be broken, each at one known moment.

A drill begins in an empty world and asserts what its people see. What became of the grants is the
checker's to judge, after time enough for everything to heal.
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
# With a rotating Spotify a lost answer can be asked for again this long; see `rotated_and_lost`.
GRACE_SECONDS = 120

Scenario = Callable[[World], None]


@dataclass(frozen=True)
class Drill:
    scenario: Scenario
    grace_seconds: int
    only: bool | None
    """The one kind of Spotify, rotating or not, that it is about; None: both."""

    @property
    def name(self) -> str:
        return self.scenario.__name__


DRILLS: dict[str, Drill] = {}


def drill(*, grace_seconds: int = GRACE_SECONDS, only: bool | None = None) -> Callable[[Scenario], Scenario]:
    def register(scenario: Scenario) -> Scenario:
        DRILLS[scenario.__name__] = Drill(scenario, grace_seconds, only)
        return scenario

    return register


def drills(*, rotate: bool) -> list[str]:
    return [name for name, one in DRILLS.items() if one.only in (None, rotate)]


def run(
    world: World, name: str, *, rotate: bool, settle: bool = True
) -> tuple[Report, AssertionError | None]:
    """Run one drill. Returns the checker's report, and what the scenario itself found wrong.

    Without `settle` nobody waits for the grants to be fresh in the end.
    """
    one, failure = DRILLS[name], None
    world.reset(rotate=rotate, grace_seconds=one.grace_seconds if rotate else 0)
    try:
        one.scenario(world)
    except AssertionError as error:
        failure = error
    if settle:
        world.settle()
    return check(world.history()), failure


def where(failure: AssertionError) -> str:
    """The lines that led to a failure."""
    return "".join(traceback.format_exception(failure)).rstrip()


# What nobody breaks.


@drill()
def twenty_callers(world: World) -> None:
    """Twenty at once, on two servers: one call."""
    ada, link = _connected(world)
    for round_number in (1, 2):
        world.run_out(link)
        asked = [world.later(ada.awaited_token, world.servers[n % 2]) for n in range(20)]
        answers = [future.result() for future in asked]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert len(world.refresh_calls()) == round_number


@drill()
def many_schedulers(world: World) -> None:
    """All schedulers wake up to many due links: one call for each."""
    people = [person["id"] for person in world.sandbox.seed(24)]
    visits = [world.later(world.visitor, person, world.servers[n % 2]) for n, person in enumerate(people)]
    for visit in visits:
        visit.result()
    world.pass_time(3600 - 300)
    world.resume_schedulers()
    eventually(lambda: len(world.refresh_calls()) >= len(people))
    eventually(lambda: not world.stale_links())
    assert len(world.refresh_calls()) == len(people)


# The one who refreshes is stopped or killed.


@drill()
def paused_beyond_its_lease(world: World) -> None:
    """Overtaken while it stood still, it comes back with news about the generation before."""
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.broken("paused", link), world.parked():
        late = _refreshing(world, ada, link, victim)
        victim.pause()
        world.pass_lease()
        overtaking = ada.token(other)
        victim.resume()
    assert overtaking.status_code == 200, overtaking.text
    assert late.result().status_code == 200
    assert world.row(link).generation == 1


@drill()
def paused_with_the_answer(world: World) -> None:
    """It stood still with Spotify's answer on its way to it."""
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.broken("paused", link):
        victim.spotify.hold("down", when=b"access_token")
        world.run_out(link)
        late = world.later(ada.token, victim)
        victim.spotify.wait_held()
        victim.pause()
        world.pass_lease()
        overtaking = ada.token(other)
        victim.spotify.release()
        victim.resume()
    assert overtaking.status_code == 200, overtaking.text
    assert late.result().status_code == 200


@drill()
def killed_before_the_send(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    victim.spotify.hold("up", when=b"/api/token")
    world.run_out(link)
    lost = world.later(ada.token, victim)
    victim.spotify.wait_held()
    _kill(world, victim, link, lost)
    assert world.refresh_calls() == []
    _is_taken_up(world, ada, other)
    assert len(world.refresh_calls()) == 1


@drill()
def killed_after_the_send(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.parked():
        lost = _refreshing(world, ada, link, victim)
        _kill(world, victim, link, lost)
    eventually(lambda: world.refresh_calls()[0]["finished_at"])
    _is_taken_up(world, ada, other)


@drill()
def killed_after_the_reply(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    victim.spotify.hold("down", when=b"access_token")
    world.run_out(link)
    lost = world.later(ada.token, victim)
    victim.spotify.wait_held()
    _kill(world, victim, link, lost)
    _is_taken_up(world, ada, other)


@drill()
def killed_before_the_update(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.parked():
        lost = _refreshing(world, ada, link, victim)
        victim.database.hold("up", when=b"UPDATE access_tokens")
    victim.database.wait_held()
    _kill(world, victim, link, lost)
    assert world.row(link).generation == 0
    _is_taken_up(world, ada, other)


@drill()
def killed_before_the_commit(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.parked():
        lost = _refreshing(world, ada, link, victim)
        victim.database.hold("up", when=b"COMMIT", since=b"UPDATE access_tokens")
    victim.database.wait_held()
    _kill(world, victim, link, lost)
    eventually(world.rows_are_free)
    assert world.row(link).generation == 0
    _is_taken_up(world, ada, other)


@drill()
def killed_before_the_unlock(world: World) -> None:
    """The refresh stands; only the lock is left behind."""
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.parked():
        lost = _refreshing(world, ada, link, victim)
        victim.redis.hold("up", when=b"lock:")
    victim.redis.wait_held()
    _kill(world, victim, link, lost)
    assert world.row(link).generation == 1
    assert ada.token(other).status_code == 200
    assert len(world.refresh_calls()) == 1


@drill()
def scheduler_killed(world: World) -> None:
    """The schedulers that are left take up what a killed one had begun."""
    ada, link = _connected(world)
    with world.parked():
        world.pass_time(3600 - 300)
        victim = world.schedulers[0]
        victim.resume()
        world.arrived()
        world.broke("killed", link)
        victim.kill()
    world.pass_lease()
    world.resume_schedulers()
    eventually(lambda: not world.stale_links())
    assert ada.token(world.servers[0]).status_code == 200


# Replies are lost.


@drill()
def claim_whose_commit_is_lost(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    world.broke("lost COMMIT reply", link)
    victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
    world.run_out(link)
    ada.token(victim)
    victim.database.wait_dropped()
    world.pass_lease()
    assert ada.token(other).status_code == 200


@drill()
def commit_whose_reply_is_lost(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.parked():
        asked = _refreshing(world, ada, link, victim)
        world.broke("lost COMMIT reply", link)
        victim.database.drop_reply(after=b"COMMIT", since=b"UPDATE access_tokens")
    victim.database.wait_dropped()
    asked.result()
    assert ada.token(other).status_code == 200
    assert world.row(link).generation == 1
    assert len(world.refresh_calls()) == 1


@drill()
def lock_whose_reply_is_lost(world: World) -> None:
    ada, link = _connected(world)
    victim = world.servers[0]
    world.broke("lost lock reply", link)
    victim.redis.drop_reply(after=b"lock:")
    world.run_out(link)
    assert ada.token(victim).status_code == 200
    assert victim.redis.dropped
    assert len(world.refresh_calls()) == 1


@drill()
def unlock_whose_reply_is_lost(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.parked():
        asked = _refreshing(world, ada, link, victim)
        world.broke("lost unlock reply", link)
        victim.redis.drop_reply(after=b"lock:")
    assert asked.result().status_code == 200
    world.run_out(link)
    assert ada.token(other).status_code == 200
    assert len(world.refresh_calls()) == 2


@drill()
def answer_is_lost(world: World) -> None:
    """Spotify has refreshed, and the connection breaks before it says so."""
    ada, link = _connected(world)
    world.sandbox.fault(on="refresh", kind="close", times=1, after_effect=True)
    world.run_out(link)
    assert ada.token(world.servers[0]).status_code == 503


@drill(grace_seconds=0, only=True)
def rotated_and_lost(world: World) -> None:
    """The one way to lose a grant: a Spotify that rotates without grace, and loses its answer."""
    ada, link = _connected(world)
    world.sandbox.fault(on="refresh", kind="close", times=1, after_effect=True)
    world.run_out(link)
    assert ada.token(world.servers[0]).status_code == 503
    _confirm(world, ada, link)
    assert world.row(link).state == "reauthorization_required"


# Redis is away.


@drill()
def redis_flushed(world: World) -> None:
    ada, link = _connected(world)
    with world.parked():
        asked = _refreshing(world, ada, link, world.servers[0])
        world.broke("redis flushed", link)
        world.redis.client.flushall()
        again = ada.another()
        assert again.login(world.servers[1]).status_code == 200
        other = world.later(again.token, world.servers[1])
        eventually(lambda: world.redis.client.keys("lock:*") or other.done())
    assert {asked.result().status_code, other.result().status_code} == {200}
    assert len(world.refresh_calls()) == 1


@drill()
def redis_killed(world: World) -> None:
    """Without Redis nobody is known and no lock is had; who had begun finishes, and schedulers go on."""
    ada, link = _connected(world)
    bob, second = _connected(world, JONAS)
    with world.broken("redis down"):
        with world.parked():
            asked = _refreshing(world, ada, link, world.servers[0])
            world.redis.kill()
        assert asked.result().status_code == 200
        world.pass_time(3600 - 300)
        world.resume_schedulers()
        eventually(lambda: not world.stale_links())
        assert ada.token(world.servers[1]).status_code == 503
        world.pause_schedulers()
        world.redis.start()
    assert bob.login(world.servers[1]).status_code == 200
    assert bob.token(world.servers[1]).status_code == 200
    assert world.row(second).generation == 1


@drill()
def redis_blackholed(world: World) -> None:
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.broken("redis stalled", link):
        with world.parked():
            asked = _refreshing(world, ada, link, victim)
            victim.redis.blackhole()
        assert asked.result().status_code == 200
        victim.redis.restore()
    assert ada.token(other).status_code == 200
    assert len(world.refresh_calls()) == 1


# MariaDB is away.


@drill()
def mariadb_unreachable_before_the_commit(world: World) -> None:
    """Spotify's answer has to wait until it can be stored."""
    ada, link = _connected(world)
    victim, other = world.servers[:2]
    with world.broken("mariadb unreachable", link):
        with world.parked():
            asked = _refreshing(world, ada, link, victim)
            victim.database.refuse()
        eventually(lambda: world.refresh_calls()[0]["finished_at"])
        # Somebody has to notice: the wait is for the trouble, not for its end.
        _waits(asked, 1.0)
        victim.database.restore()
    asked.result()
    if world.row(link).generation == 0:
        world.pass_lease()
    assert ada.token(other).status_code == 200


@drill()
def mariadb_killed_during_a_refresh(world: World) -> None:
    """Killed outright and started again on its files: what was committed is there."""
    ada, link = _connected(world)
    world.run_out(link)
    assert ada.token(world.servers[1]).status_code == 200
    with world.broken("mariadb killed"):
        with world.parked():
            asked = _refreshing(world, ada, link, world.servers[0])
            world.database.kill()
            assert ada.token(world.servers[1]).status_code == 503
            world.database.start()
        asked.result()
    assert world.row(link).generation >= 1
    if world.row(link).generation == 1:
        world.pass_lease()
    assert ada.token(world.servers[1]).status_code == 200


@drill()
def mariadb_stopped_for_a_moment(world: World) -> None:
    ada, link = _connected(world)
    with world.broken("mariadb stopped"):
        with world.parked():
            asked = _refreshing(world, ada, link, world.servers[0])
            world.database.pause()
        _waits(asked, 0.5)
        world.database.resume()
    assert asked.result().status_code == 200
    assert world.row(link).generation == 1


# People do things meanwhile.


@drill()
def linked_anew_while_refreshing(world: World) -> None:
    """News about the old grant must not touch the new one."""
    ada, link = _connected(world)
    with world.parked():
        late = _refreshing(world, ada, link, world.servers[0])
        world.link_anew(MIRA, world.servers[1])
        renewed = world.row(link)
    late.result()
    after = world.row(link)
    assert (after.grant_id, after.generation) == (renewed.grant_id, 0)
    assert after.access_token == renewed.access_token
    assert ada.token(world.servers[1]).status_code == 200


@drill()
def refused_after_linking_anew(world: World) -> None:
    """Nor may a refusal of the old grant's token."""
    ada, link = _connected(world)
    world.sandbox.fault(on="refresh", kind="park", times=1)
    late = _refreshing(world, ada, link, world.servers[0])
    world.revoke(MIRA)
    world.link_anew(MIRA, world.servers[1])
    world.sandbox.release()
    late.result()
    assert (world.row(link).state, world.row(link).generation) == ("active", 0)


@drill()
def disconnected_while_refreshing(world: World) -> None:
    ada, link = _connected(world)
    with world.parked():
        late = _refreshing(world, ada, link, world.servers[0])
        assert ada.disconnect(world.servers[1]).status_code == 204
    assert late.result().status_code == 409
    assert world.row(link) is None


# Spotify's own doing.


@drill()
def revoked(world: World) -> None:
    ada, link = _connected(world)
    world.run_out(link)
    world.revoke(MIRA)
    _confirm(world, ada, link)
    assert world.row(link).state == "reauthorization_required"
    world.link_anew(MIRA, world.servers[0])
    assert world.row(link).state == "active"
    assert ada.token(world.servers[1]).status_code == 200


@drill()
def revoked_by_mistake(world: World) -> None:
    ada, link = _connected(world)
    world.sandbox.fault(on="refresh", kind="false_invalid_grant", times=1)
    world.run_out(link)
    assert ada.token(world.servers[0]).status_code == 409
    assert world.row(link).state == "suspect"
    world.pass_time(15 * 60 + 1)
    assert ada.token(world.servers[1]).status_code == 200
    assert world.row(link).state == "active"


@drill()
def spotify_is_unwell(world: World) -> None:
    """Whatever it answers, nobody loses a connection, and all is well when it is well."""
    ada, link = _connected(world)
    for kind in ("google_502", "truncated_json", "close", "rate_limited"):
        world.run_out(link)
        world.sandbox.fault(on="refresh", kind=kind, times=1, retry_after=7)
        assert ada.token(world.servers[0]).status_code in (429, 503)
        assert world.row(link).state == "active"
        world.pass_time(20)
        assert ada.token(world.servers[1]).status_code == 200


@drill(grace_seconds=0)
def answered_without_an_access_token(world: World) -> None:
    """The new refresh token counts all the same: the old one may be used up."""
    ada, link = _connected(world)
    for access_token in (None, 17):
        world.run_out(link)
        members = {"access_token": access_token}
        world.sandbox.fault(on="refresh", kind="changed_members", members=members, times=1, after_effect=True)
        assert ada.token(world.servers[0]).status_code == 503
        world.pass_time(20)
        assert ada.token(world.servers[1]).status_code == 200
    assert [call["status"] for call in world.refresh_calls()] == [200] * 4


def _connected(world: World, person: str = MIRA) -> tuple[Browser, int]:
    browser = world.connected(person)
    return browser, world.link_of(person)


def _refreshing(world: World, browser: Browser, link: int, server: ApiServer) -> "Future[requests.Response]":
    """Ask for a token that has run out, and wait until Spotify has been called for it."""
    world.run_out(link)
    asked = world.later(browser.token, server)
    world.arrived()
    return asked


def _kill(world: World, victim: ApiServer, link: int, lost: "Future[requests.Response]") -> None:
    """Kill the one that was asked, and undo what held it there."""
    world.broke("killed", link)
    victim.kill_worker()
    assert isinstance(lost.exception(), requests.ConnectionError)
    for proxy in victim.proxies:
        proxy.restore()


def _is_taken_up(world: World, browser: Browser, server: ApiServer) -> None:
    """After the lease of one who has died, another refreshes."""
    world.pass_lease()
    response = browser.token(server)
    assert response.status_code == 200, response.text


def _confirm(world: World, browser: Browser, link: int) -> None:
    """Ask as often as it takes for a refused grant to be given up, with the waits between."""
    for wait in (60, 15 * 60 + 1, 24 * 3600 + 1):
        assert browser.token(world.servers[0]).status_code == 409 or wait == 60
        if world.row(link).state == "active":  # a pause after a failure came first
            world.pass_time(wait)
            assert browser.token(world.servers[1]).status_code == 409
        elif wait != 60:
            assert world.row(link).state == "suspect"
            world.pass_time(wait)
    browser.token(world.servers[1])


def _waits(future: "Future[requests.Response]", seconds: float) -> None:
    """Give it this long to end."""
    try:
        future.result(seconds)
    except TimeoutError:
        return
