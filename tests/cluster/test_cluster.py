"""Three hosts with everything on them: no fault loses a grant, a session, or data."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import namespaces
from tests.cluster.clients import Client, Response, Result, sent_twice
from tests.cluster.grants import most_refreshes
from tests.conftest import cannot_run
from tests.helpers.servers import ROOT, Unavailable, eventually, find_program

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1800)]

FAULTS = {
    "sentinel": ("cut-out", "rollout"),
    "cluster": ("kill", "disk"),
}
# `script/cluster` judges the gap on an idle machine. Here, other tests run, and servers count as gone later.
MAX_GAP_SECONDS = 120


@contextmanager
def running_cluster(log: Path, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a run, whose output is in a file. It ends with the block."""
    try:
        find_program("haproxy", "haproxy")
        with log.open("wb") as output:
            process = namespaces.enter(arguments, stdout=output, stderr=output)
    except Unavailable as error:
        cannot_run(error)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("redis", FAULTS)
def test_faults_cost_nothing_but_time(redis: str, tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    options = ["--patient", "--seconds", "5", "--seed", os.urandom(4).hex(), "--json", str(results)]
    with running_cluster(log, "--redis", redis, "--faults", ",".join(FAULTS[redis]), *options) as run:
        run.wait()
    text = log.read_text(errors="replace")
    assert results.exists(), text
    found: dict[str, Any] = json.loads(results.read_text())

    assert found["violations"] == [], text
    assert found["refreshes"] > 0
    assert [outcome["fault"] for outcome in found["outcomes"]] == [*FAULTS[redis]]
    assert max(outcome["gap"] for outcome in found["outcomes"]) < MAX_GAP_SECONDS, text


def test_nothing_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tests.cluster", "--faults", "kill"]
    with log.open("wb") as output, running_cluster(tmp_path / "other") as other:
        other.kill()  # it only showed that this machine can run one
        runner = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        eventually(lambda: "the first database runs" in log.read_text(), timeout=600)
        inside = _descendants(runner.pid)
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()

    assert len(inside) > 5
    eventually(lambda: not any(_start_time(pid) == started for pid, started in inside.items()))


def _descendants(pid: int) -> dict[int, str | None]:
    """Return the processes below a process, with the time when each was started: ids are used again."""
    found: dict[int, str | None] = {}
    with suppress(OSError):  # it has ended meanwhile
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found |= {child: _start_time(child)} | _descendants(child)
    return {each: started for each, started in found.items() if started is not None}


def _start_time(pid: int) -> str | None:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def test_gap_is_the_longest_time_without_a_success() -> None:
    client = Client(None, None, [])  # type: ignore[arg-type]
    client.results = [Result(at, failure) for at, failure in ((1, None), (4, "503"), (6, None), (7, None))]
    assert client.gap(2, 8).seconds == 5
    assert [result.failure for result in client.gap(2, 8).results] == ["503", None]
    assert client.gap(6.5, 10).seconds == 3


class Person:
    """Someone for whom every call has the same response."""

    person = "p"

    def __init__(self, status: int, **members: object) -> None:
        self._status, self._body = status, json.dumps(members).encode()

    def call(self, method: str, path: str) -> Response:
        return Response(f"{method} {path}", self._status, self._body)


def client_after_steps(person: Person) -> Client:
    client = Client(person, random.Random(1), [])  # type: ignore[arg-type]
    for _ in range(30):
        client.step()
    return client


def test_what_calls_promise_is_a_success() -> None:
    for status in (200, 204):
        client = client_after_steps(Person(status, authenticated=True, access_token="t"))
        assert {result.failure for result in client.results} == {None}
        assert not client.violations


@pytest.mark.parametrize("status", [409, 429, 502, 503, 504])
def test_failure_that_clients_expect_is_no_violation(status: int) -> None:
    client = client_after_steps(Person(status, type="/problems/spotify-outcome-unknown"))
    assert {result.failure for result in client.results} == {str(status)}
    assert not client.violations


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 500])
def test_other_response_is_a_violation_and_no_success(status: int) -> None:
    client = client_after_steps(Person(status, type="/problems/spotify-not-connected"))
    assert None not in {result.failure for result in client.results}
    assert client.violations.total() == len(client.results)


def test_lost_session_is_a_violation_and_no_success() -> None:
    client = client_after_steps(Person(200, authenticated=False, access_token="t"))
    assert set(client.violations) == {"GET /api/session: signed out"}
    failures = [result.failure for result in client.results if result.failure]
    assert len(failures) == client.violations.total() > 0


def test_busiest_period_is_found() -> None:
    moments = ("00.0", "09.9", "10.0", "19.8", "30.0")
    journal = [
        {"at": f"2026-11-27T00:00:{moment}00Z", "grant_type": "refresh_token", "path": "/api/token"}
        for moment in moments
    ]
    other = {**journal[1], "grant_type": "authorization_code"}
    assert most_refreshes([*journal, other], 10) == 3
    assert most_refreshes([], 10) == 0


def test_write_that_arrives_twice_is_found() -> None:
    call = {"person": "p", "path": "/v1/me/player/seek", "query": "position_ms=1"}
    assert sent_twice([call, {**call, "query": "position_ms=2"}]) == []
    assert sent_twice([call, call]) == ["p position_ms=1"]
