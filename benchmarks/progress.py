"""Options of a run, and a line on the terminal that says what it does."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure."""

    quick: bool = False
    rounds: int = 5
    seconds: float = 3
    only: tuple[str, ...] = ()  # of the routes; empty: all
    before: Path | None = None  # the directory of an earlier version


def progress(what: str) -> None:
    """Say on stderr what is being done: on a terminal, in place of the last message."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{what}")
    else:
        sys.stderr.write(f"{what}\n")
    sys.stderr.flush()
