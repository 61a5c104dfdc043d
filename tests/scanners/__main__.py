"""Runs scanners and prints what they find. Run by script/scan."""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tests.helpers.servers import Unavailable
from tests.scanners.programs import install
from tests.scanners.scans import EXPLAINED, SCANNERS
from tests.scanners.service import running_service

# One more than most machines have cores for: slowhttptest mostly waits.
AT_ONCE = 3


@dataclass(frozen=True)
class Result:
    """What a scanner found."""

    outcome: Literal["ok", "FAILED", "not checked"]
    text: str


def main() -> int:
    """Run the scanners in the arguments. Returns 1 if one found something that is not explained."""
    parser = argparse.ArgumentParser(prog="script/scan")
    parser.add_argument("names", nargs="*", metavar="SCANNER")
    names = parser.parse_args().names or list(SCANNERS)
    if unknown := set(names) - set(SCANNERS):
        parser.error(f"unknown scanner: {', '.join(sorted(unknown))}. There are: {', '.join(SCANNERS)}.")
    install()
    try:
        with running_service() as service, ThreadPoolExecutor(AT_ONCE) as pool:
            running = {
                name: pool.submit(examine, partial(SCANNERS[name], service), EXPLAINED[name])
                for name in names
            }
            results = {name: each.result() for name, each in running.items()}
    except (Unavailable, AssertionError, OSError) as error:  # script/test says more
        results = dict.fromkeys(names, Result("not checked", f"the service did not start: {error}"))
    for name, result in results.items():
        text = result.text.replace("\n", "\n    ")
        print(f"{result.outcome:11}  {name:12}  {text}")
    return int(any(result.outcome == "FAILED" for result in results.values()))


def examine(scan: Callable[[], set[str]], explained: set[str]) -> Result:
    """Run a scanner, and compare what it finds with what is explained.

    What is new must be found twice: on a busy machine, scanners report requests that timed out.
    """
    try:
        found = scan()
        new = found - explained
        if new:
            new &= scan()
    except Exception as error:  # noqa: BLE001 - whatever made it crash says nothing about the service
        return Result("not checked", f"{type(error).__name__}: {error}"[:1000])
    if new:
        lines = [f"{finding} is not explained in docs/scanners.md" for finding in sorted(new)]
        return Result("FAILED", "\n".join(lines))
    lines = [f"explained in docs/scanners.md: {finding}" for finding in sorted(found & explained)]
    lines += [f"found only once of twice: {finding}" for finding in sorted(found - explained)]
    return Result("ok", "\n".join(lines) or "no findings")


if __name__ == "__main__":
    sys.exit(main())
