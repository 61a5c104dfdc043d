"""The simulation of a fleet: it counts what a simulation of single connections does, and prints numbers."""

import heapq
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.spotify.tokens import transitions
from app.spotify.tokens.scheduler import TICK_SECONDS
from app.spotify.tokens.service import REQUEST_LEAD
from benchmarks.fleet import LEAD
from benchmarks.simulation import LIFETIME, START, TICK, Fault, Scenario, Tick, simulate
from tests.helpers.servers import ROOT

HOUR = timedelta(hours=1)
SEED = 7
# 30 minutes without servers, and then a backlog.
OUTAGE = Scenario(100_000, 50, hours=3, fault=Fault(None, HOUR, HOUR / 2))
TICKS_TOGETHER = 10


@pytest.fixture(autouse=True)
def _restore_random() -> Iterator[None]:
    """Undo the seed of the random numbers that the product and other tests use."""
    state = random.getstate()
    yield
    random.setstate(state)


def test_counting_connections_equals_simulating_each_of_them() -> None:
    counted = simulate(OUTAGE, LEAD, SEED)
    single = [*_each_connection()]

    assert len(counted) == len(single) == OUTAGE.ticks
    scale = OUTAGE.connections * TICKS_TOGETHER * TICK / (LIFETIME - LEAD)
    for first in range(0, OUTAGE.ticks, TICKS_TOGETHER):
        part = slice(first, first + TICKS_TOGETHER)
        refreshes = sum(tick.refreshes for tick in counted[part])
        # Chance alone makes 1% of difference.
        assert refreshes == pytest.approx(sum(found for found, _, _ in single[part]), abs=0.03 * scale), first
        overdue = single[part.stop - 1][2]
        assert counted[part.stop - 1].overdue == pytest.approx(overdue, abs=0.01 * OUTAGE.connections), first
    requested = sum(found for _, found, _ in single)
    assert sum(tick.requested for tick in counted) == pytest.approx(requested, rel=0.05)
    assert requested > 1_000


def _each_connection() -> list[tuple[int, int, int]]:
    """Simulate every connection. Returns refreshes, those by requests, and how many wait, for each tick."""
    generator = random.Random(SEED)
    random.seed(SEED)
    fault, asked = OUTAGE.fault, OUTAGE.asks_per_hour * (TICK / HOUR)
    assert fault is not None
    valid_for = (LIFETIME - REQUEST_LEAD) // TICK
    queue = [_begin(generator) for _ in range(OUTAGE.connections)]  # due, refreshed
    heapq.heapify(queue)
    waiting: list[tuple[int, int]] = []
    result = []
    for tick in range(OUTAGE.ticks):
        while queue and queue[0][0] <= tick:
            waiting.append(heapq.heappop(queue))
        scheduled = requested = 0
        if not fault.is_on(tick * TICK):
            left = [
                (due, refreshed)
                for due, refreshed in waiting
                if tick - refreshed <= valid_for or generator.random() >= asked
            ]
            requested = len(waiting) - len(left)
            scheduled = min(OUTAGE.rate * TICK_SECONDS, len(left))
            waiting = left[scheduled:]
            for _ in range(scheduled + requested):
                heapq.heappush(queue, (tick + _delay(), tick))
        result.append((scheduled + requested, requested, len(waiting)))
    return result


def _delay() -> int:
    due_at = transitions.next_refresh_at(START + LIFETIME, LIFETIME, LEAD)
    return -(-(due_at - START) // TICK)


def _begin(generator: random.Random) -> tuple[int, int]:
    """Return when a connection is due and was refreshed, if the first tick is any moment of its life."""
    while True:
        delay, age = _delay(), generator.randint(1, LIFETIME // TICK)
        if age <= delay:  # a long one is the more likely to be met
            return delay - age, -age


def test_jitter_dissolves_the_wave_that_follows_an_outage() -> None:
    outage = Scenario(10_000_000, 5_000, hours=12, fault=Fault(None, HOUR, HOUR / 2))

    without, with_jitter = (
        _swing([*simulate(outage, LEAD, SEED, jitter=jitter)][-int(2 * HOUR / TICK) :])
        for jitter in (False, True)
    )

    assert without == 1
    assert with_jitter < 0.5


def _swing(ticks: list[Tick]) -> float:
    """Return by which part of the peak the load varies."""
    refreshes = [tick.refreshes for tick in ticks]
    return 1 - min(refreshes) / max(refreshes)


def test_command_prints_numbers_and_draws(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.fleet",
        "--connections",
        "1000",
        "--rate",
        "1",
        "--hours",
        "4",
    ]

    done = subprocess.run(
        [*command, "--seed", "5", "--plots", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "| Spotify fails for an hour, with jitter" in done.stdout
    assert "seed 5" in done.stdout
    assert "seed 5" in done.stderr
    assert len([*tmp_path.glob("fleet-*.svg")]) == 6
