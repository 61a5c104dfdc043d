"""script/scan: what a scanner finds fails it, and what a scanner could not check does not."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.helpers.servers import Unavailable
from tests.scanners.__main__ import Result, examine
from tests.scanners.programs import Incomplete, output


def finds(*results: set[str] | Exception) -> Callable[[], set[str]]:
    """Return a scanner with these results, one for each run."""
    left = list(results)

    def scan() -> set[str]:
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return scan


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([set()], Result("ok", "no findings")),
        ([{"known"}], Result("ok", "explained in docs/scanners.md: known")),
        (
            [{"known", "new"}, {"known", "new"}],
            Result("FAILED", "new is not explained in docs/scanners.md"),
        ),
        ([{"late"}, set()], Result("ok", "found only once of twice: late")),
        ([Unavailable("no apt-get")], Result("not checked", "Unavailable: no apt-get")),
        ([{"new"}, Incomplete("killed")], Result("not checked", "Incomplete: killed")),
        (
            [subprocess.TimeoutExpired("x", 1)],
            Result("not checked", "TimeoutExpired: Command 'x' "),
        ),
    ],
    ids=["nothing", "explained", "new", "once", "missing", "crash", "slow"],
)
def test_only_findings_fail(results: list[set[str] | Exception], expected: Result) -> None:
    found = examine(finds(*results), {"known"})
    assert (found.outcome, found.text[: len(expected.text)]) == (expected.outcome, expected.text)


def test_output_of_a_scanner_that_fails_is_used() -> None:
    program = "import sys; sys.stderr.write('broken'); sys.exit(1)"
    assert output([sys.executable, "-c", program]) == "broken"
