"""What `flask doctor` reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    good: bool
    what: str
    advice: str = ""
    doubtful: bool = False  # it works, but may not be what the operator means
