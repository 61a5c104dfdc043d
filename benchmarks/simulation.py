"""Simulates the refreshes of millions of connections, in ticks of the scheduler.

Connections are counted rather than simulated one by one: those that were refreshed in the same tick, and are
due in the same tick, behave alike. When a token is refreshed, and when the breaker opens, probes, and closes,
are the product's own rules, so a change of a rule changes the simulation.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from app.models.token_refresh import Outcome
from app.spotify.tokens import transitions
from app.spotify.tokens.breaker_rules import RULES, Rule
from app.spotify.tokens.scheduler import TICK_SECONDS
from app.spotify.tokens.service import REQUEST_LEAD

TICK = timedelta(seconds=TICK_SECONDS)
LIFETIME = timedelta(hours=1)  # of every access token of Spotify's
START = datetime(2026, 1, 1, tzinfo=UTC)
# How often `next_refresh_at` is called to learn how it spreads refreshes.
SAMPLES = 100_000


@dataclass(frozen=True)
class Fault:
    """Spotify answers every refresh with `outcome`; with None, our own servers are down."""

    outcome: Outcome | None
    begins: timedelta
    lasts: timedelta
    retry_after: int | None = None

    def is_on(self, at: timedelta) -> bool:
        """Return whether the fault is present."""
        return self.begins <= at < self.begins + self.lasts


@dataclass(frozen=True)
class Scenario:
    """What happens on the simulated day."""

    connections: int
    rate: int  # REFRESH_RATE
    asks_per_hour: float = 0.5  # how often each connection's token is asked for
    new_connections: int = 0  # within `connect_within` of `connect_from`
    connect_from: timedelta = timedelta()
    connect_within: timedelta = timedelta(hours=1)
    fault: Fault | None = None
    hours: int = 24

    @property
    def ticks(self) -> int:
        """How many ticks the day has."""
        return int(timedelta(hours=self.hours) / TICK)


@dataclass(frozen=True)
class Tick:
    """What has happened in one tick. All but the first are numbers of connections."""

    at: timedelta
    scheduled: float  # refreshed by schedulers
    requested: float  # refreshed by a request that found the token expired
    failed: float  # calls to Spotify that failed
    unserved: float  # requests that found the token expired, and could not refresh it
    overdue: float  # connections that are due and have to wait

    @property
    def refreshes(self) -> float:
        """All refreshes."""
        return self.scheduled + self.requested


@cache
def due_after(lead: timedelta, seed: int, *, jitter: bool) -> Counter[int]:
    """Return after how many ticks tokens are due again, from samples of the product's rule."""
    random.seed(seed)
    expires_at = START + LIFETIME
    delays = [transitions.next_refresh_at(expires_at, LIFETIME, lead) - START for _ in range(SAMPLES)]
    if not jitter:
        delays = [sum(delays, timedelta()) / SAMPLES] * SAMPLES
    return Counter(-(-delay // TICK) for delay in delays)  # at the first tick after


@dataclass
class _Breaker:
    """The breaker for one outcome, by the product's `Rule`."""

    rule: Rule
    probe_at: datetime | None = None  # None while it is closed
    successes: int = 0
    recent: deque[tuple[datetime, float, float]] = field(default_factory=deque)  # time, failed, tried

    def count(self, now: datetime, *, failed: float, tried: float) -> None:
        """Count attempts, and open if the rule says so."""
        self.recent.append((now, failed, tried))
        while self.recent[0][0] <= now - self.rule.window:
            self.recent.popleft()
        all_failed = sum(count for _, count, _ in self.recent)
        all_tried = sum(count for _, _, count in self.recent)
        if failed and self.rule.is_met(int(all_failed), int(all_tried)):
            self.recent.clear()
            self.probe_at, self.successes = now + self.rule.probe_interval, 0

    def try_to_close(self, now: datetime, fault: Fault | None) -> None:
        """Send the probe if it is due."""
        if self.probe_at is None or self.rule.is_waiting(self.probe_at, now):
            return
        if fault is not None:
            self.probe_at, self.successes = now + self.rule.probe_wait(fault.retry_after), 0
            return
        self.probe_at, self.successes = now + self.rule.probe_interval, self.successes + 1
        if self.successes >= self.rule.successes:
            self.probe_at = None


class Fleet:
    """All connections, by when they were refreshed and when they are due again."""

    def __init__(self, scenario: Scenario, delays: Counter[int]) -> None:
        self._scenario = scenario
        total = sum(delays.values())
        self._delays = {ticks: count / total for ticks, count in sorted(delays.items())}
        self._due: dict[int, dict[int, float]] = {}  # due tick -> tick of the last refresh -> connections
        self._asked = scenario.asks_per_hour * (TICK / timedelta(hours=1))  # in one tick
        self._valid_for = int((LIFETIME - REQUEST_LEAD) / TICK)
        rule = next((rule for rule in RULES.values() if self._has_outcome(rule)), None)
        self._breaker = _Breaker(rule) if rule else None
        # As many in each tick as are refreshed in each: those whose next refresh is still to come.
        steady = scenario.connections / sum(ticks * part for ticks, part in self._delays.items())
        for age in range(1, max(self._delays) + 1):
            for ticks, part in self._delays.items():
                if ticks >= age:
                    self._add(ticks - age, -age, steady * part)

    def run(self) -> Iterator[Tick]:
        """Yield what happens in each tick."""
        scenario, fault = self._scenario, self._scenario.fault
        for tick in range(scenario.ticks):
            at = tick * TICK
            if scenario.connect_from <= at < scenario.connect_from + scenario.connect_within:
                self._refreshed(tick, scenario.new_connections * (TICK / scenario.connect_within))
            present = fault if fault is not None and fault.is_on(at) else None
            if present is not None and present.outcome is None:
                yield self._tick(tick)
                continue
            failed = self._failed_calls(tick, present)
            if present or (self._breaker and self._breaker.probe_at is not None):
                yield self._tick(tick, failed=failed, unserved=self._expired(tick) * self._asked)
                continue
            requested = self._take_expired(tick)
            scheduled = self._take_due(tick, scenario.rate * TICK_SECONDS)
            self._refreshed(tick, requested + scheduled)
            if self._breaker:
                self._breaker.count(START + at, failed=0, tried=requested + scheduled)
            yield self._tick(tick, scheduled=scheduled, requested=requested)

    def _has_outcome(self, rule: Rule) -> bool:
        fault = self._scenario.fault
        return fault is not None and rule.outcome is fault.outcome

    def _tick(
        self,
        tick: int,
        *,
        scheduled: float = 0,
        requested: float = 0,
        failed: float = 0,
        unserved: float = 0,
    ) -> Tick:
        overdue = sum(sum(found.values()) for due, found in self._due.items() if due <= tick)
        return Tick(tick * TICK, scheduled, requested, failed, unserved, overdue)

    def _failed_calls(self, tick: int, fault: Fault | None) -> float:
        """Let the breaker probe, or open it. Returns the calls that fail until it is open."""
        breaker, failed = self._breaker, 0.0
        if breaker is None:
            return 0
        breaker.try_to_close(START + tick * TICK, fault)
        if fault is None:
            return 0
        due = sum(sum(found.values()) for number, found in self._due.items() if number <= tick)
        for second in range(TICK_SECONDS):
            if breaker.probe_at is not None:
                break
            calls = min(self._scenario.rate, due - failed)
            failed += calls
            breaker.count(START + tick * TICK + timedelta(seconds=second), failed=calls, tried=calls)
        return failed

    def _add(self, due: int, refreshed: int, connections: float) -> None:
        found = self._due.setdefault(due, {})
        found[refreshed] = found.get(refreshed, 0) + connections

    def _refreshed(self, tick: int, connections: float) -> None:
        if connections:
            for ticks, part in self._delays.items():
                self._add(tick + ticks, tick, connections * part)

    def _expired_by_due(self, tick: int) -> Iterator[tuple[dict[int, float], list[int]]]:
        for due in [number for number in self._due if number <= tick]:
            found = self._due[due]
            yield found, [refreshed for refreshed in found if tick - refreshed > self._valid_for]

    def _expired(self, tick: int) -> float:
        return sum(found[number] for found, expired in self._expired_by_due(tick) for number in expired)

    def _take_expired(self, tick: int) -> float:
        """Take those that somebody asks for out of those that have expired."""
        taken = 0.0
        for found, expired in self._expired_by_due(tick):
            for number in expired:
                taken += found[number] * self._asked
                found[number] *= 1 - self._asked
        return taken

    def _take_due(self, tick: int, capacity: float) -> float:
        """Take as many as the rate allows, in the order of the queue: due first, then next to expire."""
        taken = 0.0
        for due in sorted(number for number in self._due if number <= tick):
            found = self._due[due]
            for refreshed in sorted(found):
                part = min(found[refreshed], capacity - taken)
                taken += part
                if part < found[refreshed]:
                    found[refreshed] -= part
                    return taken
                del found[refreshed]
            del self._due[due]
        return taken


def simulate(scenario: Scenario, lead: timedelta, seed: int, *, jitter: bool = True) -> Sequence[Tick]:
    """Return all ticks of a scenario."""
    return list(Fleet(scenario, due_after(lead, seed, jitter=jitter)).run())
