"""What a run does, and what it shows."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# The longest time that a client may go without a successful response.
GAP_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What to do."""

    faults: tuple[str, ...]
    seed: str
    seconds: float
    """How long each fault lasts."""
    host: int | None = None
    """The host that is hit. None: the preferred database, or the primary Redis, by chance."""
    redis: str = "sentinel"
    patient: bool = False
    """Whether to give a busy machine more time before a server counts as gone."""
    grants: int = 0
    """How many more grants are due when each fault begins."""

    @property
    def lifetime(self) -> int:
        """How long access tokens are valid, in seconds. They are refreshed after half of it.

        The other half is longer than the lease of a refresh (30 s), as with Spotify's tokens, which are valid
        for an hour. So nobody waits for the refresh of a host that was killed. A patient run has people wait.
        """
        return 24 if self.patient else 96

    @property
    def connections(self) -> int:
        """How many people there are. About three of them need a refresh every two seconds."""
        return self.lifetime * 3 // 4


@dataclass
class Outcome:
    """What a fault did."""

    fault: str
    host: str
    gap: float
    requests_in_gap: str
    slowest: float
    """How long the slowest request took, in seconds."""
    requests: int
    failures: Counter[str]
    unavailable: list[float]
    """How long each 503 took, in seconds."""
    rejoin: float
    refreshed_within: float | None = None
    """How long it took until all grants were refreshed that were due when the fault began."""
    pause: float | None = None
    """The longest time without a refresh until then."""

    def __str__(self) -> str:
        text = (
            f"{self.fault} of {self.host}: gap {self.gap:.1f} s, {self.failures.total()} of {self.requests} "
            f"requests failed {dict(self.failures) or ''}, slowest {self.slowest:.1f} s, "
            f"rejoined after {self.rejoin:.1f} s"
        )
        if self.refreshed_within is None:
            return text
        return f"{text}; all refreshed within {self.refreshed_within:.1f} s, longest pause {self.pause:.1f} s"

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "failures": dict(self.failures)}


@dataclass
class Result:
    """The outcomes, and everything that must not happen. An empty list is good."""

    outcomes: list[Outcome] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    refreshes: int = 0
    fastest: int = 0
    """How many calls of refreshes there were in the busiest ten seconds, from all hosts together."""
    calls_per_generation: Counter[int] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {
            "outcomes": [outcome.as_json() for outcome in self.outcomes],
            "violations": self.violations,
            "refreshes": self.refreshes,
            "fastest": self.fastest,
        }
