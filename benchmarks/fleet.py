"""A day of refreshes for ten million connections, simulated with the product's own rules.

script/bench fleet
.venv/bin/python -m benchmarks.fleet --help
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from app.models.token_refresh import Outcome
from app.spotify.tokens.scheduler import TICK_SECONDS
from benchmarks import plots
from benchmarks.plots import Point
from benchmarks.progress import Options, progress
from benchmarks.results import RESULTS, Figure, Section
from benchmarks.simulation import Fault, Scenario, Tick, simulate
from config import Config

HOUR = timedelta(hours=1)
CONNECTIONS = 10_000_000
# Slightly more than needed, as docs/sizing.md recommends. The others are in proportion to the connections.
RATE = 5_000
SEED = 16
LEAD = timedelta(seconds=Config.model_fields["refresh_lead_seconds"].default)
WITH, WITHOUT = "with jitter", "without jitter"
# How many ticks are one point of a plot.
TICKS_PER_POINT = 4


def scenarios(connections: int, rate: int, hours: int) -> dict[str, Scenario]:
    """Return what is simulated, by name. Whatever happens begins after two hours."""
    day, begins = Scenario(connections, rate, hours=hours), 2 * HOUR
    faults = {
        "Spotify fails for an hour": Fault(Outcome.UNAVAILABLE, begins, HOUR),
        "our servers are down for 30 minutes": Fault(None, begins, HOUR / 2),
        "Spotify asks to wait for 4 hours (429)": Fault(Outcome.RATE_LIMITED, begins, 4 * HOUR, 4 * 3600),
        "Spotify rejects valid grants for 30 minutes": Fault(Outcome.INVALID_GRANT, begins, HOUR / 2),
    }
    tenth = connections // 10
    wave = dataclasses.replace(
        day, connections=connections - tenth, new_connections=tenth, connect_from=begins
    )
    return {
        "a tenth connects within an hour": wave,
        "a tenth connects within 10 minutes": dataclasses.replace(wave, connect_within=HOUR / 6),
        **{name: dataclasses.replace(day, fault=fault) for name, fault in faults.items()},
    }


@dataclass(frozen=True)
class Day:
    """The ticks of a day, and what they add up to."""

    scenario: Scenario
    ticks: Sequence[Tick]

    @property
    def mean(self) -> float:
        """Refreshes per second."""
        return sum(tick.refreshes for tick in self.ticks) / len(self.ticks) / TICK_SECONDS

    @property
    def peak(self) -> float:
        """The most refreshes per second in any tick."""
        return max(tick.refreshes for tick in self.ticks) / TICK_SECONDS

    @property
    def minutes_of_backlog(self) -> float:
        """How long after the end of the fault, or of the sign-ups, connections are overdue."""
        fault, scenario = self.scenario.fault, self.scenario
        ended = (
            fault.begins + fault.lasts
            if fault is not None
            else scenario.connect_from + scenario.connect_within
        )
        gone = (tick.at for tick in self.ticks if tick.at >= ended and tick.overdue < 1)
        return (next(gone, timedelta(hours=scenario.hours)) - ended) / timedelta(minutes=1)

    def range_between(self, first_hour: int, last_hour: int) -> tuple[float, float]:
        """Return the fewest and the most refreshes per second between these hours of the day."""
        begins, ends = first_hour * HOUR, last_hour * HOUR
        found = [tick.refreshes / TICK_SECONDS for tick in self.ticks if begins <= tick.at < ends]
        return min(found), max(found)

    def line(self) -> list[Point]:
        """Return the refreshes per second by hours of the day."""
        return [
            (
                self.ticks[first].at / HOUR,
                sum(tick.refreshes for tick in self.ticks[first : first + TICKS_PER_POINT])
                / len(self.ticks[first : first + TICKS_PER_POINT])
                / TICK_SECONDS,
            )
            for first in range(0, len(self.ticks), TICKS_PER_POINT)
        ]

    def figure(self, name: str) -> Figure:
        """Return the day as a row of a table. Its value is the peak."""
        ranges = {
            f"hours {first} to {last}": "{:,.0f} to {:,.0f} /s".format(*self.range_between(first, last))
            for first, last in ((10, 12), (22, 24))
            if last <= self.scenario.hours
        }
        more: Mapping[str, float | str] = {
            "mean": f"{self.mean:,.0f} /s",
            **ranges,
            "backlog gone after": f"{self.minutes_of_backlog:.0f} min",
            "expired when asked for, then refreshed": round(sum(tick.requested for tick in self.ticks)),
            "expired, and not refreshed": round(sum(tick.unserved for tick in self.ticks)),
            "failed calls": round(sum(tick.failed for tick in self.ticks)),
        }
        return Figure(name, round(self.peak), "/s", more=more)


def run(_: Options) -> Section:
    """Simulate ten million connections."""
    return compare(scenarios(CONNECTIONS, RATE, 24), SEED, LEAD, RESULTS)


def compare(chosen: Mapping[str, Scenario], seed: int, lead: timedelta, directory: Path) -> Section:
    """Simulate each scenario with jitter and without, and draw both."""
    figures = []
    for name, scenario in chosen.items():
        progress(f"{name} (seed {seed})")
        days = {
            kind: Day(scenario, simulate(scenario, lead, seed, jitter=kind == WITH))
            for kind in (WITHOUT, WITH)
        }
        figures += [day.figure(f"{name}, {kind}") for kind, day in days.items()]
        plots.draw_hours(
            directory / f"fleet-{_file_name(name)}.svg",
            f"{plots.short(scenario.connections + scenario.new_connections)} connections: {name}",
            "refreshes per second",
            {kind: day.line() for kind, day in days.items()},
            limit=("REFRESH_RATE", scenario.rate),
        )
    one = next(iter(chosen.values()))
    size = one.connections + one.new_connections
    notes = [
        f"{size:,} connections, REFRESH_RATE {one.rate:,}, seed {seed}.",
        f"The value is the peak in any {TICK_SECONDS} seconds.",
        f"Each connection's token is asked for {one.asks_per_hour:g} times an hour.",
        "Requests that find it expired refresh it themselves, beyond REFRESH_RATE.",
        "Plots: benchmarks/results/fleet-*.svg.",
    ]
    return Section("A day of refreshes, simulated", figures, notes)


def _file_name(name: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower())
    return "-".join(words.split())


def main() -> int:
    """Simulate what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description="Simulates a day of refreshes with jitter and without, and draws both.",
    )
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--rate", type=int, default=RATE, help="REFRESH_RATE (default: %(default)s)")
    parser.add_argument("--lead", type=int, default=LEAD.seconds, help="REFRESH_LEAD_SECONDS (%(default)s)")
    parser.add_argument("--hours", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="of the jitter (default: %(default)s)")
    parser.add_argument("--plots", type=Path, default=RESULTS, metavar="DIRECTORY")
    given = parser.parse_args()
    chosen = scenarios(given.connections, given.rate, given.hours)
    print(compare(chosen, given.seed, timedelta(seconds=given.lead), given.plots).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
