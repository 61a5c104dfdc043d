"""Callers of a slow Spotify occupy some of a worker's threads, but never all of them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from app.infra.database import writing
from app.models import AccessToken
from app.resilience.bulkhead import Admission, Bulkhead, BulkheadFull
from tests.helpers.flows import connect, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import Server, eventually

LONG = 60.0


@contextmanager
def slot(bulkhead: Bulkhead, caller: object, *, until: float = 0.0) -> Iterator[None]:
    """Hold a slot while the block runs."""
    with bulkhead.admit(caller) as admission:
        bulkhead.acquire(admission, until=until)
        yield


class Callers:
    """Threads that hold slots of a bulkhead until `leave`, or wait for one."""

    def __init__(self, slots: int, queue: int) -> None:
        self.bulkhead = Bulkhead(slots, queue)
        self.holding: list[object] = []
        self._leaving: list[threading.Event] = []
        self._pool = ThreadPoolExecutor(16)

    def enter(self, caller: object = None) -> "Future[str]":
        """Enter as this caller, or as a new one, and wait for a slot without a limit."""
        leave, entered, caller = threading.Event(), threading.Event(), caller or object()
        self._leaving.append(leave)
        admissions: list[Admission] = []

        def hold_slot() -> str:
            try:
                with self.bulkhead.admit(caller) as admission:
                    admissions.append(admission)
                    self.bulkhead.acquire(admission, until=time.monotonic() + LONG)
                    self.holding.append(caller)
                    entered.set()
                    leave.wait(LONG)
                    self.holding.remove(caller)
            except BulkheadFull:
                return "rejected"
            return "served"

        entering = self._pool.submit(hold_slot)
        eventually(lambda: entering.done() or entered.is_set() or any(one.wants_slot for one in admissions))
        return entering

    @property
    def queued(self) -> int:
        return sum(admission.wants_slot for admission in self.bulkhead._admissions)

    def leave(self, number: int) -> None:
        self._leaving[number].set()

    def close(self) -> None:
        for leave in self._leaving:
            leave.set()
        self._pool.shutdown()


@pytest.fixture
def callers() -> Iterator[Callers]:
    callers = Callers(2, 2)
    yield callers
    callers.close()


def test_bulkhead_gives_a_free_slot_to_the_queue(callers: Callers) -> None:
    first, second, waiting = callers.enter(), callers.enter(), callers.enter()
    assert (len(callers.holding), callers.queued) == (2, 1)
    callers.leave(0)
    assert first.result(LONG) == "served"
    eventually(lambda: len(callers.holding) == 2 and callers.queued == 0)
    callers.close()
    assert (second.result(LONG), waiting.result(LONG)) == ("served", "served")


def test_bulkhead_rejects_a_caller_whose_deadline_passes(callers: Callers) -> None:
    callers.enter(), callers.enter()
    for until in (0.0, time.monotonic() + 0.05):
        with pytest.raises(BulkheadFull), slot(callers.bulkhead, "late", until=until):
            pass
    assert callers.queued == 0


def test_bulkhead_rejects_excess_callers_immediately(callers: Callers) -> None:
    for _ in range(4):
        callers.enter()
    assert (len(callers.holding), callers.queued) == (2, 2)
    assert callers.enter().result(LONG / 2) == "rejected"


def test_bulkhead_evicts_a_flooding_caller_for_another_one(callers: Callers) -> None:
    """One caller may fill the queue, but others are admitted as long as they occupy fewer threads."""
    floods = [callers.enter("ada") for _ in range(4)]
    assert callers.holding == ["ada"]  # half of the slots

    grace = callers.enter("grace")
    assert callers.holding == ["ada", "grace"]
    assert floods[-1].result(LONG) == "rejected"  # the newest
    assert not any(flood.done() for flood in floods[:-1])
    assert callers.enter("ada").result(LONG) == "rejected"

    callers.close()
    assert grace.result(LONG) == "served"
    assert [flood.result(LONG) for flood in floods] == ["served"] * 3 + ["rejected"]


def test_bulkhead_prefers_the_caller_with_the_fewest_slots() -> None:
    callers = Callers(4, 8)
    ada = [callers.enter("ada") for _ in range(5)]
    bob = [callers.enter("bob") for _ in range(3)]
    grace = callers.enter("grace")
    assert sorted(map(str, callers.holding)) == ["ada", "ada", "bob", "bob"]
    callers.leave(0)
    assert ada[0].result(LONG) == "served"
    eventually(lambda: "grace" in callers.holding)
    callers.close()
    assert {one.result(LONG) for one in [*ada, *bob, grace]} == {"served"}


def test_bulkhead_releases_a_slot_after_an_error() -> None:
    small = Bulkhead(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), slot(small, object()):
            raise ZeroDivisionError
    with slot(small, object()), pytest.raises(BulkheadFull), slot(small, object()):
        pass
    with slot(small, object()):
        pass


def test_bulkhead_reserves_half_of_the_slots_for_other_callers() -> None:
    shared = Bulkhead(4, 0)
    with slot(shared, "ada"), slot(shared, "ada"):
        with pytest.raises(BulkheadFull), slot(shared, "ada"):
            pass
        with slot(shared, "grace"):
            pass
    with slot(shared, "ada"):
        pass
    assert not shared._admissions


def test_paused_caller_releases_its_slot_and_keeps_its_thread() -> None:
    small = Bulkhead(1, 1)
    with small.admit("ada") as admission:
        small.acquire(admission)
        small.acquire(admission)  # it has one
        with pytest.raises(BulkheadFull), slot(small, "grace"):
            pass
        small.pause(admission, 0)
        with slot(small, "grace"), pytest.raises(BulkheadFull):
            small.acquire(admission)
    assert not small._admissions


def test_paused_caller_is_evicted_immediately() -> None:
    small = Bulkhead(1, 2)
    with ThreadPoolExecutor(1) as pool, small.admit("ada"), small.admit("ada"), small.admit("ada") as newest:
        pausing = pool.submit(small.pause, newest, LONG)
        with slot(small, "grace"):
            assert isinstance(pausing.exception(LONG / 2), BulkheadFull)
            with pytest.raises(BulkheadFull):
                small.acquire(newest, until=time.monotonic() + LONG)
    assert not small._admissions


def test_bulkhead_never_exceeds_its_slots() -> None:
    small, inside, most, lock, full = Bulkhead(3, 2), 0, 0, threading.Lock(), threading.Event()

    def visit(_: int) -> None:
        nonlocal inside, most
        with slot(small, object(), until=time.monotonic() + LONG):
            with lock:
                inside += 1
                most = max(most, inside)
                if inside == 3:
                    full.set()
            assert full.wait(LONG)  # on a busy machine, a thread may start late
            threading.Event().wait(0.001)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(5) as pool:  # two may wait
        list(pool.map(visit, range(120)))
    assert most == 3
    assert small._admissions == []


# Over gunicorn


@pytest.fixture
def caller(app: object, client: FlaskClient, sandbox: SandboxClient) -> Iterator[requests.Session]:
    """Return an HTTP client with the session of a signed-in person who has connected Spotify."""
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


@pytest.mark.sqlite_only
@pytest.mark.requirement("L3")
def test_requests_that_wait_for_two_hanging_hosts_leave_threads_for_others(
    server: Callable[..., AbstractContextManager[Server]],
    caller: requests.Session,
    stale: dict[str, str],
    sandbox: SandboxClient,
) -> None:
    sandbox.fault(on="player", kind="park", times=None)
    sandbox.fault(on="refresh", kind="park", times=None)
    limits = {"TESTS_CALL_SECONDS": str(LONG)}  # on a busy machine, the first calls would time out
    with server(workers=1, threads=2, **limits) as api, ThreadPoolExecutor(170) as pool:

        def read(number: int, headers: Any = caller.headers, path: str = "v1/me/player") -> requests.Response:
            url = f"{api.url}/api/spotify/{path}?number={number}"
            return requests.get(url, headers=headers, timeout=60)

        try:
            # 16 slots and a queue of 64 for the Web API, and 64 that wait for the accounts service.
            reads = [pool.submit(read, number) for number in range(90)]
            tokens = [pool.submit(read, number, stale, "token") for number in range(74)]
            eventually(lambda: all(sum(one.done() for one in some) >= 10 for some in (reads, tokens)))
            others = [caller.get(f"{api.url}/api/session", timeout=60).status_code for _ in range(20)]
            are_waiting = not all(one.done() for one in reads)  # so no thread became free by their end
            rejected = [one.result() for one in reads if one.done()]
            calls = sandbox.calls(path="/v1/me/player")
        finally:
            sandbox.clear_faults()
        assert (set(others), are_waiting) == ({200}, True)
        for response in rejected:
            assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
            assert response.json()["type"] == "/problems/spotify-unavailable"
        assert len(calls) == 8  # one person can have half of the slots
        assert sorted(one.result().status_code for one in reads) == [200] * 80 + [503] * 10
        assert {one.result().status_code for one in tokens} == {200, 503}


@pytest.mark.sqlite_only
def test_burst_of_one_person_is_served_completely(
    server: Callable[..., AbstractContextManager[Server]], caller: requests.Session, sandbox: SandboxClient
) -> None:
    """It is served in waves, also just after a start and with few threads, and does not delay others."""
    sandbox.settings(latency_ms={"api": 700, "token": 700})
    with server(workers=1, threads=2) as api, ThreadPoolExecutor(40) as pool:

        def read(number: int) -> int:
            url = f"{api.url}/api/spotify/v1/tracks/{number:022}"
            return requests.get(url, headers=caller.headers, timeout=60).status_code

        def is_served_meanwhile(_: int) -> bool:
            """Whether a request is served before the burst. On a busy machine, it may take as long."""
            sandbox.clear_calls()
            calls = [pool.submit(read, number) for number in range(40)]
            eventually(lambda: sandbox.calls(path=f"/v1/tracks/{0:022}"))
            assert caller.get(f"{api.url}/api/session", timeout=60).status_code == 200
            is_first = not any(one.done() for one in calls[20:])
            assert {one.result() for one in calls} == {404}
            return is_first

        assert any(map(is_served_meanwhile, range(20)))
