"""Who waits for a slow Spotify holds some of a worker's threads, and never all of them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import writing
from app.models import AccessToken
from app.resilience.bulkhead import Bulkhead, BulkheadFull
from tests.helpers.flows import connect, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server, eventually

LONG = 30.0


class Room:
    """A bulkhead, and threads that hold places in it until they are let go, or wait for one."""

    def __init__(self, places: int, queue: int) -> None:
        self.bulkhead = Bulkhead(places, queue)
        self.holding: list[object] = []
        self._leaving: list[threading.Event] = []
        self._pool = ThreadPoolExecutor(16)

    def enter(self, caller: object = None) -> "Future[str]":
        """Enter as this caller, or as one of its own, with all the time there is."""
        leave, caller = threading.Event(), caller or object()
        self._leaving.append(leave)

        def stay() -> str:
            try:
                with self.bulkhead.place(caller, until=time.monotonic() + LONG):
                    self.holding.append(caller)
                    leave.wait(LONG)
                    self.holding.remove(caller)
            except BulkheadFull:
                return "turned away"
            return "had a place"

        before = self.queued
        entering = self._pool.submit(stay)
        eventually(lambda: entering.done() or self.queued > before or caller in self.holding)
        return entering

    @property
    def queued(self) -> int:
        return sum(ticket.wants_place for ticket in self.bulkhead._tickets)

    def leave(self, number: int) -> None:
        self._leaving[number].set()

    def close(self) -> None:
        for leave in self._leaving:
            leave.set()
        self._pool.shutdown()


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room(2, 2)
    yield room
    room.close()


def test_bulkhead_gives_a_free_place_to_the_queue(room: Room) -> None:
    first, second, waiting = room.enter(), room.enter(), room.enter()
    assert (len(room.holding), room.queued) == (2, 1)
    room.leave(0)
    assert first.result(LONG) == "had a place"
    eventually(lambda: len(room.holding) == 2 and room.queued == 0)
    room.close()
    assert (second.result(LONG), waiting.result(LONG)) == ("had a place", "had a place")


def test_bulkhead_rejects_a_caller_whose_time_is_up(room: Room) -> None:
    room.enter(), room.enter()
    for until in (0.0, time.monotonic() + 0.05):
        with pytest.raises(BulkheadFull), room.bulkhead.place("late", until=until):
            pass
    assert room.queued == 0


def test_bulkhead_rejects_excess_callers_immediately(room: Room) -> None:
    for _ in range(4):
        room.enter()
    assert (len(room.holding), room.queued) == (2, 2)
    assert room.enter().result(LONG / 2) == "turned away"


def test_bulkhead_dismisses_a_flooder_for_another_caller(room: Room) -> None:
    """One caller may fill the queue, but others find room as long as they hold less."""
    floods = [room.enter("ada") for _ in range(4)]
    assert room.holding == ["ada"]  # half of the places

    grace = room.enter("grace")
    assert room.holding == ["ada", "grace"]
    assert floods[-1].result(LONG) == "turned away"  # the newest
    assert not any(flood.done() for flood in floods[:-1])
    assert room.enter("ada").result(LONG) == "turned away"

    room.close()
    assert grace.result(LONG) == "had a place"
    assert [flood.result(LONG) for flood in floods] == ["had a place"] * 3 + ["turned away"]


def test_bulkhead_prefers_the_caller_with_the_fewest_places() -> None:
    room = Room(4, 8)
    ada = [room.enter("ada") for _ in range(5)]
    bob = [room.enter("bob") for _ in range(3)]
    grace = room.enter("grace")
    assert sorted(map(str, room.holding)) == ["ada", "ada", "bob", "bob"]
    room.leave(0)
    assert ada[0].result(LONG) == "had a place"
    eventually(lambda: "grace" in room.holding)
    room.close()
    assert {one.result(LONG) for one in [*ada, *bob, grace]} == {"had a place"}


def test_a_place_is_given_back_also_after_an_error() -> None:
    small = Bulkhead(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), small.place(object()):
            raise ZeroDivisionError
    with small.place(object()), pytest.raises(BulkheadFull), small.place(object()):
        pass
    with small.place(object()):
        pass


def test_one_caller_has_half_of_the_places_and_the_others_are_for_others() -> None:
    shared = Bulkhead(4, 0)
    with shared.place("ada"), shared.place("ada"):
        with pytest.raises(BulkheadFull), shared.place("ada"):
            pass
        with shared.place("grace"):
            pass
    with shared.place("ada"):
        pass
    assert not shared._tickets


def test_ticket_gives_its_place_back_and_keeps_its_thread() -> None:
    small = Bulkhead(1, 1)
    with small.ticket("ada") as ticket:
        small.take_place(ticket)
        small.take_place(ticket)  # it has one
        with pytest.raises(BulkheadFull), small.place("grace"):
            pass
        small.give_place_back(ticket)
        with small.place("grace"), pytest.raises(BulkheadFull):
            small.take_place(ticket)
    assert not small._tickets


def test_never_are_more_inside_than_there_are_places() -> None:
    small, inside, most, lock = Bulkhead(3, 2), 0, 0, threading.Lock()

    def visit(_: int) -> None:
        nonlocal inside, most
        with small.place(object(), until=time.monotonic() + LONG):
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.001)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(5) as pool:  # two may wait
        list(pool.map(visit, range(120)))
    assert most == 3
    assert small._tickets == []


# Over gunicorn


@pytest.fixture
def caller(app: object, client: FlaskClient, sandbox: SandboxClient) -> Iterator[requests.Session]:
    """Somebody with a connection to Spotify, whose session other processes know too."""
    register(client)
    connect(client, sandbox)
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    with requests.Session() as http:
        http.trust_env = False
        http.headers.update({"X-Requested-With": "test", "Cookie": f"backline_session={cookie.value}"})
        yield http
    sandbox.clear_faults()


@pytest.fixture
def stale(app: Flask, new_client: Callable[[], FlaskClient], sandbox: SandboxClient) -> dict[str, str]:
    """Return the headers of a visitor whose access token has expired."""
    visitor = new_client()
    connect(visitor, sandbox, person=str(sandbox.seed(1)[0]["id"]))
    with app.app_context(), writing() as db:
        newest = db.scalars(sa.select(AccessToken).order_by(AccessToken.id.desc())).first()
        assert newest is not None
        newest.expires_at = datetime.now(UTC) - timedelta(minutes=1)
    cookie = visitor.get_cookie("backline_session")
    assert cookie is not None
    return {"X-Requested-With": "test", "Cookie": f"{cookie.key}={cookie.value}"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("same", [True, False], ids=["the same read", "different reads"])
def test_callers_of_two_hanging_hosts_leave_threads_to_others(
    server: Callable[..., AbstractContextManager[Server]],
    caller: requests.Session,
    stale: dict[str, str],
    sandbox: SandboxClient,
    same: bool,
) -> None:
    sandbox.fault(on="player", kind="park", times=None)
    sandbox.fault(on="refresh", kind="park", times=None)
    with server(workers=1, threads=2) as api, ThreadPoolExecutor(170) as pool:

        def read(number: int) -> requests.Response:
            query = "" if same else f"?market=S{number}"
            url = f"{api.url}/api/spotify/v1/me/player{query}"
            return requests.get(url, headers=caller.headers, timeout=LONG)

        def read_token(_: int) -> requests.Response:
            return requests.get(f"{api.url}/api/spotify/token", headers=stale, timeout=LONG)

        try:
            # 16 places and a queue of 64 for the Web API, and 64 that wait for the accounts service.
            reads = [pool.submit(read, number) for number in range(90)]
            tokens = [pool.submit(read_token, number) for number in range(74)]
            eventually(lambda: all(sum(one.done() for one in some) >= 10 for some in (reads, tokens)))
            began = time.monotonic()
            others = [caller.get(f"{api.url}/api/session", timeout=LONG).status_code for _ in range(20)]
            took = time.monotonic() - began
            refused = [one.result() for one in reads if one.done()]
            calls = sandbox.calls(path="/v1/me/player")
        finally:
            sandbox.clear_faults()
        assert set(others) == {200}
        assert took < 2  # a single one that met no free thread would take longer
        for answer in refused:
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json()["type"] == "/problems/spotify-unavailable"
        assert len(calls) == (1 if same else 8)  # half of the places are for one person
        assert sorted(one.result(LONG).status_code for one in reads) == [200] * 80 + [503] * 10
        assert {one.result(LONG).status_code for one in tokens} == {200, 503}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("threads", "latency_ms"), [(2, 700), (32, 400)])
def test_one_person_reads_much_at_once_and_all_of_it_is_served(
    server: Callable[..., AbstractContextManager[Server]],
    caller: requests.Session,
    sandbox: SandboxClient,
    threads: int,
    latency_ms: int,
) -> None:
    """In waves, also right after a start and with few threads. Nobody else is held up."""
    sandbox.settings(latency_ms={"api": latency_ms, "token": latency_ms})
    with server(workers=1, threads=threads) as api, ThreadPoolExecutor(40) as pool:

        def read(number: int) -> int:
            url = f"{api.url}/api/spotify/v1/tracks/{number}"
            return requests.get(url, headers=caller.headers, timeout=LONG).status_code

        asked = [pool.submit(read, number) for number in range(40)]
        eventually(lambda: sandbox.calls(path="/v1/tracks/0"))
        began = time.monotonic()
        assert caller.get(f"{api.url}/api/session", timeout=LONG).status_code == 200
        assert time.monotonic() - began < 1
        assert {one.result(LONG) for one in asked} == {404}
