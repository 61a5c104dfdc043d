"""The command line of the benchmark; script/bench documents it."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    comparison,
    counting,
    engine,
    flame,
    fleet,
    growth,
    latency,
    pruning,
    results,
    routes,
    slowness,
    startup,
    storage,
)
from benchmarks.progress import Options, progress
from benchmarks.results import Section
from tests.helpers.servers import Unavailable

PARTS: dict[str, Callable[[Options], Section]] = {
    "routes": routes.run,
    "alternatives": comparison.run,
    "startup": startup.run,
    "storage": storage.run,
    "miss": latency.run_miss,
    "tail": latency.run_tail,
    "hang": slowness.run_hang,
    "outage": slowness.run_outage,
    "slow": slowness.run_slow,
    "tabs": slowness.run_tabs,
    "burst": slowness.run_burst,
    "growth": growth.run_growth,
    "due": growth.run_due,
    "engine": engine.run,
    "memory": engine.run_memory,
    "pruning": pruning.run,
    "counting": counting.run,
    "fleet": fleet.run,
    "flame": flame.run,
}
DEFAULT = tuple(name for name in PARTS if name not in ("memory", "pruning"))
QUICK = ("routes", "alternatives")


def main() -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="script/bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", action="append", default=[], metavar="ROUTE")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--output", type=Path, default=results.RESULTS / "latest.json")
    parser.add_argument("parts", nargs="*", metavar="PART")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}. There are: {', '.join(PARTS)}.")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds has to be 1 or more.")
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    before = arguments.before.resolve() if arguments.before else None
    seconds = 1 if arguments.quick else 2
    options = Options(arguments.quick, rounds, seconds, tuple(arguments.only), before)
    described, sections, failed = results.machine(), {}, 0
    for name in arguments.parts or (QUICK if arguments.quick else DEFAULT):
        began = time.monotonic()
        try:
            sections[name] = PARTS[name](options)
        except Unavailable as error:
            print(f"{name}: not measured. {error}", file=sys.stderr)
            failed = 1
            continue
        progress(f"{name}: {time.monotonic() - began:.0f} s")
        print(f"\n{sections[name].markdown()}", flush=True)
        results.save(arguments.output, sections, described)
    if sections:
        print(
            f"All numbers are in {arguments.output}, and the tables in {arguments.output.with_suffix('.md')}."
        )
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. All servers have been stopped.")
