"""The result of a check."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended, as `flask doctor` prints it."""

    OK = "ok"
    WARNING = "warn"  # it works, but may not be what the operator wants
    FAILURE = "fail"


@dataclass(frozen=True)
class CheckResult:
    """The result of a check, and how to fix a problem."""

    status: Status
    summary: str
    advice: str = ""


def ok(summary: str, advice: str = "") -> CheckResult:
    """Return the result of a check that passed."""
    return CheckResult(Status.OK, summary, advice)


def warning(summary: str, advice: str) -> CheckResult:
    """Return the result of a check that passed, but found something unusual."""
    return CheckResult(Status.WARNING, summary, advice)


def failure(summary: str, advice: str) -> CheckResult:
    """Return the result of a check that failed."""
    return CheckResult(Status.FAILURE, summary, advice)


def excerpt(message: object) -> str:
    """Return the start of a server's error message, which contains no secret: the checks send no data."""
    return "".join(filter(str.isprintable, str(message)))[:100]
