"""Who waits for a slow Spotify holds some of a worker's threads, and never all of them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
import requests
from flask.testing import FlaskClient

from app import bulkhead
from app.bulkhead import Bulkhead, NoPlace
from tests.journeys import connect, register
from tests.sandbox_client import SandboxClient
from tests.services import Server, eventually

LONG = 30.0


class Room:
    """A bulkhead, and threads that hold places in it until they are let go, or wait for one."""

    def __init__(self, places: int) -> None:
        self.bulkhead = Bulkhead(places)
        self.holding = 0
        self._leaving: list[threading.Event] = []
        self._pool = ThreadPoolExecutor(16)

    def enter(self, **options: bool) -> "Future[str]":
        leave = threading.Event()
        self._leaving.append(leave)

        def stay() -> str:
            try:
                with self.bulkhead.place(object(), **options):
                    self.holding += 1
                    leave.wait(LONG)
                    self.holding -= 1
            except NoPlace:
                return "turned away"
            return "had a place"

        return self._pool.submit(stay)

    def leave(self, number: int) -> None:
        self._leaving[number].set()

    def close(self) -> None:
        for leave in self._leaving:
            leave.set()
        self._pool.shutdown()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    room = Room(2)
    yield room
    room.close()


def fill(room: Room) -> list["Future[str]"]:
    inside = [room.enter(), room.enter()]
    eventually(lambda: room.holding == 2)
    return inside


def slow(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those who hold places have held them for long."""
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", 0.05)
    eventually(room.bulkhead._is_slow)


def test_while_the_service_is_slow_who_finds_no_place_is_turned_away_at_once(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(room)
    slow(room, monkeypatch)
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", LONG / 2)  # what a patient one would wait
    room.bulkhead._since = {key: since - LONG for key, since in room.bulkhead._since.items()}

    began = time.monotonic()
    with pytest.raises(NoPlace), room.bulkhead.place(object()):
        pass
    assert time.monotonic() - began < LONG / 4


def test_while_the_service_is_quick_one_waits_for_the_next_place(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", LONG)
    fill(room)
    waiting = room.enter()
    with pytest.raises(NoPlace), room.bulkhead.place(object(), patient=False):
        pass
    assert not waiting.done()

    room.leave(0)

    eventually(lambda: room.holding == 2)
    room.leave(2)
    assert waiting.result(LONG) == "had a place"


def test_one_waits_for_a_place_for_a_moment_only(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", 0.1)
    fill(room)
    assert room.enter().result(LONG) == "turned away"


def test_who_has_something_else_to_offer_does_not_wait_for_a_place(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", LONG)
    fill(room)
    assert room.enter(patient=False).result(LONG / 2) == "turned away"


def test_fewer_wait_for_a_place_than_there_are_places(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", LONG)
    fill(room)
    waiting = room.enter()
    eventually(lambda: room.bulkhead._waiting._value == 0)

    assert room.enter().result(LONG / 2) == "turned away"
    joining = room.enter(joins=True)  # what another one brings, soon
    threading.Event().wait(0.05)
    assert not joining.done()

    for number in range(5):
        room.leave(number)
    assert {waiting.result(LONG), joining.result(LONG)} == {"had a place"}


def test_a_place_is_given_back_also_after_an_error() -> None:
    small = Bulkhead(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), small.place(object(), patient=False):
            raise ZeroDivisionError
    with small.place(object(), patient=False), pytest.raises(NoPlace), small.place(object(), patient=False):
        pass
    with small.place(object(), patient=False):
        pass


def test_one_caller_has_half_of_the_places_and_the_others_are_for_others() -> None:
    shared = Bulkhead(4)
    with shared.place("ada"), shared.place("ada"):
        with pytest.raises(NoPlace), shared.place("ada", patient=False):
            pass
        with shared.place("grace", patient=False):
            pass
    with shared.place("ada", patient=False):
        pass
    assert not shared._taken


def test_a_slow_call_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", -1.0)  # whatever a call takes
    shared = Bulkhead(4)
    with shared.place("ada"):
        pass
    monkeypatch.setattr(bulkhead, "SLOW_SECONDS", 1.0)
    assert shared._is_slow()
    shared._slow_until -= bulkhead.REMEMBERED_SECONDS
    assert not shared._is_slow()


def test_never_are_more_inside_than_there_are_places() -> None:
    small, inside, most, lock = Bulkhead(3), 0, 0, threading.Lock()

    def visit(_: int) -> None:
        nonlocal inside, most
        with small.place(object()):
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.001)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(5) as pool:  # two may wait
        list(pool.map(visit, range(120)))
    assert most == 3
    assert small._since == {}


# Over gunicorn


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_person_with_many_calls_that_are_not_quite_slow_leaves_threads_to_others(
    server: Callable[..., AbstractContextManager[Server]], caller: requests.Session, sandbox: SandboxClient
) -> None:
    sandbox.fault(on="api", kind="slow", seconds=0.4, times=None)
    with server(workers=1, threads=8) as api, ThreadPoolExecutor(60) as pool:

        def read(number: int) -> int:
            url = f"{api.url}/api/spotify/v1/tracks/{number}"
            return requests.get(url, headers=caller.headers, timeout=LONG).status_code

        asked = [pool.submit(read, number) for number in range(60)]
        sandbox.wait_for_held(2)
        began = time.monotonic()
        assert caller.get(f"{api.url}/api/session", timeout=LONG).status_code == 200
        took = time.monotonic() - began
        statuses = {one.result(LONG) for one in asked}
    # They would take 60 / 8 turns of 0.4 s.
    assert took < 1
    assert statuses == {404, 503}


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


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("same", [True, False], ids=["the same read", "different reads"])
def test_who_waits_for_spotify_holds_two_of_eight_threads_and_the_excess_is_told_at_once(
    server: Callable[..., AbstractContextManager[Server]],
    caller: requests.Session,
    sandbox: SandboxClient,
    same: bool,
) -> None:
    sandbox.fault(on="player", kind="park", times=None)
    with server(workers=1, threads=8) as api, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> requests.Response:
            query = "" if same else f"?market=S{number}"
            url = f"{api.url}/api/spotify/v1/me/player{query}"
            return requests.get(url, headers=caller.headers, timeout=LONG)

        try:
            asked = [pool.submit(read, number) for number in range(8)]
            eventually(lambda: sum(one.done() for one in asked) == 6)
            refused = [one.result() for one in asked if one.done()] + [read(9) for _ in range(10)]
            others = [caller.get(f"{api.url}/api/session", timeout=5).status_code for _ in range(20)]
            calls = sandbox.calls(path="/v1/me/player")
        finally:
            sandbox.clear_faults()
        assert set(others) == {200}
        for answer in refused:
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json()["type"] == "/problems/spotify-unavailable"
        assert len(calls) == (1 if same else 2)
        assert sorted(one.result(LONG).status_code for one in asked) == [200] * 2 + [503] * 6
