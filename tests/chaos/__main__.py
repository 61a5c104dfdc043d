"""Rounds of random faults for as long as requested. Documented in script/chaos, which runs it."""

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.checker import Report
from tests.chaos.deployment import RecordedDeployment
from tests.chaos.generator import RandomRun
from tests.chaos.terminations import TerminationRun
from tests.helpers.sandbox_client import running_sandbox
from tests.helpers.servers import Unavailable

ROUND_SECONDS = 30.0
PROGRESS_SECONDS = 3.0
SCHEDULERS = 3


@dataclass
class Totals:
    """The results of all rounds."""

    rounds: int = 0
    steps: int = 0
    refreshes: int = 0
    calls_per_generation: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    destroyed_by_provider: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, run: RandomRun, report: Report) -> None:
        self.rounds += 1
        self.steps += len(run.steps)
        self.refreshes += report.refreshes
        self.calls_per_generation += report.calls_per_generation
        self.faults += run.faults
        self.statuses += run.statuses
        self.destroyed_by_provider += len(report.destroyed_by_provider)
        self.violations += [f"seed {run.seed}: {sentence}" for sentence in report.violations]


def main() -> None:
    arguments = parse_arguments()
    seed = arguments.seed or str(random.randrange(10**9))
    print_line(f"seed {seed}")
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    totals = Totals()
    try:
        with running_sandbox() as sandbox, RecordedDeployment.running(sandbox) as deployment:
            deployment.start(schedulers=SCHEDULERS)
            if arguments.terminate:
                terminate(deployment, seed, arguments.minutes * 60, stopping)
                return
            run_rounds(deployment, seed, arguments, totals, stopping)
    except Unavailable as error:
        sys.exit(str(error))
    show(totals)
    if totals.violations:
        print_line(f"\nAgain: script/chaos --seed {seed}")
        sys.exit(1)


def print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/chaos", add_help=False)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed")
    parser.add_argument("--rotate", action=argparse.BooleanOptionalAction)
    parser.add_argument("--terminate", action="store_true")
    arguments = parser.parse_args()
    if arguments.terminate and arguments.rotate is not None:
        parser.error("--terminate always rotates tokens: leave --rotate out.")
    return arguments


def run_rounds(
    deployment: RecordedDeployment,
    seed: str,
    arguments: argparse.Namespace,
    totals: Totals,
    stopping: threading.Event,
) -> None:
    until = time.monotonic() + arguments.minutes * 60
    while not stopping.is_set() and (left := until - time.monotonic()) > 0:
        rotate = totals.rounds % 2 == 1 if arguments.rotate is None else arguments.rotate
        run = RandomRun(deployment, f"{seed}.{totals.rounds}", rotate=rotate)
        progress = Progress(deployment, run, totals)
        run.run(seconds=min(ROUND_SECONDS, left), stopping=stopping.is_set, progress=progress)
        report = run.finish()
        totals.add(run, report)
        if report.violations:
            print_line("\n".join([*report.violations, f"The steps of {run.seed}:", *run.steps]))


def terminate(deployment: RecordedDeployment, seed: str, seconds: float, stopping: threading.Event) -> None:
    """Stop schedulers at random moments for so long. Exits 1 if anything is violated."""
    until = time.monotonic() + seconds
    run = TerminationRun(deployment, seed)
    run.run(until=lambda: stopping.is_set() or time.monotonic() > until)
    report = run.finish()
    lines = (
        ("schedulers stopped", len(run.statuses)),
        ("slowest stop (s)", round(run.longest, 2)),
        ("refreshes", report.refreshes),
        ("calls to Spotify", report.calls),
        ("violations", len(report.violations)),
    )
    print_line("\n".join(f"{name:<40}{value:>12}" for name, value in lines))
    if report.violations:
        print_line("\n".join([*report.violations, *run.steps]))
        sys.exit(1)


class Progress:
    """Prints progress every few seconds. Refreshes are counted after each round."""

    def __init__(self, deployment: RecordedDeployment, run: RandomRun, totals: Totals) -> None:
        self._deployment, self._run, self._totals = deployment, run, totals
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        totals = self._totals
        print_line(
            f"round {totals.rounds + 1}, {totals.steps + len(self._run.steps)} steps, "
            f"{totals.faults.total() + self._run.faults.total()} faults, "
            f"{len(self._deployment.refresh_calls())} calls in this round, "
            f"{totals.refreshes} refreshes checked, {len(totals.violations)} violations"
        )


def show(totals: Totals) -> None:
    refreshed = sum(totals.calls_per_generation.values())
    lines = [("rounds", totals.rounds), ("steps", totals.steps), ("refreshes", totals.refreshes), ("", "")]
    lines += [
        (f"generations with {calls} call{'s' * (calls > 1)}", f"{count} ({count / refreshed:.0%})")
        for calls, count in sorted(totals.calls_per_generation.items())
    ]
    lines += [("", ""), *((f"fault: {name}", count) for name, count in totals.faults.most_common()), ("", "")]
    lines += [(f"status {status}", count) for status, count in sorted(totals.statuses.items())]
    lost = sum("I8" in sentence or "I7" in sentence for sentence in totals.violations)
    lines += [
        ("", ""),
        ("grants lost", lost),
        ("grants destroyed by the provider", totals.destroyed_by_provider),
        ("violations", len(totals.violations)),
    ]
    print_line("\n".join(f"{name:<40}{value:>12}" if name else "" for name, value in lines))
    print_line("\n".join(totals.violations))


if __name__ == "__main__":
    main()
