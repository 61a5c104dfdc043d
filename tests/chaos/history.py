"""What happened, as the checker reads it: the database's changes, the attempts, and the calls to Spotify.

All moments are real ones of this machine's clock. Where time was made to pass, `Shift` says so.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal

UNREADABLE = "(does not open)"
# The sandbox's times are cut to milliseconds, so a call may seem to be older than it is.
ROUNDING = timedelta(milliseconds=2)


@dataclass(frozen=True)
class Change:
    """One change of one row of `access_tokens`, with the row as it was afterwards.

    Tokens are short ids, as in the sandbox's journal; None where the column is empty, and
    `UNREADABLE` where what is in it was not sealed for this link and grant.
    """

    kind: Literal["insert", "update", "delete"]
    at: datetime
    link: int
    grant: str
    generation: int
    state: str
    access: str | None
    refresh: str | None
    spare: str | None
    expires_at: datetime

    @property
    def tokens(self) -> tuple[str | None, str | None, str | None]:
        return self.access, self.refresh, self.spare


@dataclass(frozen=True)
class Attempt:
    """One row of `token_refreshes`, as it was last, with the real moments of its beginning and end."""

    link: int
    grant: str
    generation: int
    attempt_id: str
    outcome: str | None
    effective: bool
    began: datetime
    ended: datetime | None

    def __str__(self) -> str:
        return f"attempt {self.attempt_id[:8]} of generation {self.generation} ({self.outcome or 'in doubt'})"


@dataclass(frozen=True)
class Call:
    """One refresh call in the sandbox's journal."""

    n: int
    at: datetime
    presented: str | None
    status: int | None
    fault: str | None = None
    issued_refresh: str | None = None
    issued_access: str | None = None


@dataclass(frozen=True)
class Issued:
    """A token as the sandbox knows it in the end. `expires_at` is by the sandbox's clock."""

    token: str
    live: bool
    person: str | None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Fault:
    """Something that was broken on purpose. `links` None: it may have met any of them."""

    kind: str
    began: datetime
    ended: datetime | None = None
    links: frozenset[int] | None = None

    def meets(self, link: int, began: datetime, ended: datetime | None) -> bool:
        """Whether it was in force at some moment between the two; None is the end of time."""
        if self.links is not None and link not in self.links:
            return False
        return (ended is None or self.began <= ended) and (self.ended is None or self.ended >= began)


@dataclass(frozen=True)
class Shift:
    """Time that was made to pass: the database's moments were moved back, the sandbox's clock forward."""

    began: datetime
    ended: datetime
    seconds: float


@dataclass(frozen=True)
class Handed:
    """An access token that a client was given for this person."""

    at: datetime
    person: str
    token: str


@dataclass
class History:
    changes: list[Change] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    refresh_tokens: dict[str, Issued] = field(default_factory=dict)
    access_tokens: dict[str, Issued] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    handed: list[Handed] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """What was still not fresh when it should have been: a sentence each."""

    def offset_at(self, moment: datetime) -> timedelta:
        """How far the sandbox's clock was ahead at a moment."""
        done = bisect_right(self._shift_ends, moment)
        return timedelta(seconds=sum(shift.seconds for shift in self.shifts[:done]))

    def shifted_between(self, began: datetime, ended: datetime) -> timedelta:
        """How much time was made to pass between two moments, at least in part."""
        touched = (s.seconds for s in self.shifts if s.ended >= began and s.began <= ended)
        return timedelta(seconds=sum(touched))

    def faults_on(self, link: int, began: datetime, ended: datetime | None) -> list[Fault]:
        return [fault for fault in self.faults if fault.meets(link, began, ended)]

    @cached_property
    def _shift_ends(self) -> list[datetime]:
        return [shift.ended for shift in self.shifts]


class SandboxTime:
    """Turns times by the sandbox's clock into real ones."""

    def __init__(self, shifts: Iterable[Shift]) -> None:
        self._eras: list[tuple[datetime, timedelta]] = []
        offset = timedelta(0)
        for shift in shifts:
            offset += timedelta(seconds=shift.seconds)
            self._eras.append((shift.began, offset))

    def real(self, moment: datetime) -> datetime:
        """The real moment. Offsets only grow, so the newest one that explains it is the right one."""
        for began, offset in reversed(self._eras):
            if moment - offset >= began - ROUNDING:
                return moment - offset
        return moment


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def as_calls(journal: Iterable[dict[str, Any]], time: SandboxTime) -> list[Call]:
    """The refresh calls of the sandbox's journal."""
    return [
        Call(
            n=call["n"],
            at=time.real(moment(call["at"])),
            presented=call["refresh_token_id"],
            status=call["status"],
            fault=call["fault"],
            issued_refresh=call["issued_refresh_token_id"],
            issued_access=call["issued_access_token_id"],
        )
        for call in journal
        if call["grant_type"] == "refresh_token"
    ]


def as_issued(grants: Iterable[dict[str, Any]], kind: str) -> dict[str, Issued]:
    """The sandbox's `refresh_tokens` or `access_tokens`, by short id."""
    return {
        token["id"]: Issued(
            token["id"],
            token["live"],
            grant["person"],
            moment(token["expires_at"]) if "expires_at" in token else None,
        )
        for grant in grants
        for token in grant[kind]
    }
