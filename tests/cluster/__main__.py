"""The command: makes the namespaces, runs the plan in them, and shows the result. See script/cluster."""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

from tests.cluster import namespaces
from tests.cluster.faults import FAULTS
from tests.cluster.hosts import REFRESH_RATE
from tests.cluster.plan import GAP_SECONDS, Plan, Result
from tests.cluster.run import RATE_SECONDS, run
from tests.helpers.servers import Unavailable


def main() -> None:
    arguments = parse_arguments()
    if namespaces.is_inside():
        namespaces.end_with_runner()
        run_inside(arguments)
        return
    seed = arguments.seed or str(random.randrange(10**9))
    try:
        process = namespaces.enter([*sys.argv[1:], "--seed", seed])
    except Unavailable as error:
        sys.exit(str(error))
    try:
        sys.exit(process.wait())
    finally:
        process.kill()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/cluster", add_help=False)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--redis", choices=("sentinel", "cluster"), default="sentinel")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--host", type=int, choices=(1, 2, 3))
    parser.add_argument("--seed")
    parser.add_argument("--patient", action="store_true")
    parser.add_argument("--grants", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.faults.split(",")) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}. There are: {', '.join(FAULTS)}.")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        parser.error(f"--json: the folder {arguments.json.parent} does not exist.")
    return arguments


def run_inside(arguments: argparse.Namespace) -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
        sys.stdout.flush()

    say(f"seed {arguments.seed}")
    plan = Plan(
        faults=tuple(arguments.faults.split(",")) * arguments.rounds,
        seed=arguments.seed,
        seconds=arguments.seconds,
        host=arguments.host,
        redis=arguments.redis,
        patient=arguments.patient,
        grants=arguments.grants,
    )
    result = run(plan, say)
    if arguments.json:
        arguments.json.write_text(json.dumps(result.as_json()))
    show(result)
    is_late = not plan.patient and any(outcome.gap > GAP_SECONDS for outcome in result.outcomes)
    sys.exit(1 if result.violations or is_late else 0)


def show(result: Result) -> None:
    columns = ("gap in s", "slowest in s", "failed", "of", "rejoin in s")
    lines = [f"{'fault':<10}{'host':<8}" + "".join(f"{column:>14}" for column in columns)]
    lines += [
        f"{one.fault:<10}{one.host:<8}{one.gap:>14.1f}{one.slowest:>14.1f}"
        f"{one.failures.total():>14}{one.requests:>14}{one.rejoin:>14.1f}"
        for one in result.outcomes
    ]
    lines += ["", f"{'fault':<10}{'503s':>14}{'median in s':>14}{'p99 in s':>14}"]
    for fault in dict.fromkeys(one.fault for one in result.outcomes):
        seconds = sorted(s for one in result.outcomes if one.fault == fault for s in one.unavailable)
        if seconds:
            middle, late = (seconds[math.ceil(len(seconds) * part) - 1] for part in (0.5, 0.99))
            lines.append(f"{fault:<10}{len(seconds):>14}{middle:>14.2f}{late:>14.2f}")
    lines += ["", f"refreshes: {result.refreshes}, calls for each: {dict(result.calls_per_generation)}"]
    lines += [
        f"calls in the busiest {RATE_SECONDS} s: {result.fastest} ({REFRESH_RATE * RATE_SECONDS} are allowed)"
    ]
    lines += [f"violations: {len(result.violations)}", *result.violations]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
