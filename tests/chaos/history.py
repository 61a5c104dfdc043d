"""The history that the checker reads: changes of rows, attempts, and calls to Spotify.

All times are of this machine's clock. `Shift` records where time was advanced.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal

UNREADABLE = "(cannot be decrypted)"
# The sandbox rounds times down to milliseconds, so a call may seem older than it is.
ROUNDING = timedelta(milliseconds=2)


@dataclass(frozen=True)
class Change:
    """One change of one row of `access_tokens`, with the row as it was afterwards.

    Tokens are short ids, as in the sandbox's journal. None means that the column is NULL, and `UNREADABLE`
    that it was not encrypted for this connection and grant.
    """

    kind: Literal["insert", "update", "delete"]
    at: datetime
    spotify_user_id: int
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
    """The last state of a row of `token_refreshes`, with the real times of its start and end."""

    spotify_user_id: int
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
    client_id: str | None = None


@dataclass(frozen=True)
class Issued:
    """The last state of a token in the sandbox. `expires_at` is by the sandbox's clock."""

    token: str
    live: bool
    person: str | None
    expires_at: datetime | None = None
    client_id: str | None = None


@dataclass(frozen=True)
class Fault:
    """Something that was broken on purpose. `connections` None: it may have met any of them."""

    kind: str
    began: datetime
    ended: datetime | None = None
    spotify_user_ids: frozenset[int] | None = None

    def affects(self, spotify_user_id: int, began: datetime, ended: datetime | None) -> bool:
        """Return whether it was active at some time between these two. None means no end."""
        if self.spotify_user_ids is not None and spotify_user_id not in self.spotify_user_ids:
            return False
        return (ended is None or self.began <= ended) and (self.ended is None or self.ended >= began)


@dataclass(frozen=True)
class Shift:
    """Advanced time: stored times were moved back, and the sandbox's clock forward."""

    began: datetime
    ended: datetime
    seconds: float


@dataclass(frozen=True)
class ReturnedToken:
    """An access token that a client of this person got."""

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
    returned: list[ReturnedToken] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """A sentence for each grant that was not fresh in time."""

    def offset_at(self, moment: datetime) -> timedelta:
        """Return how far the sandbox's clock was ahead at this time."""
        done = bisect_right(self._shift_ends, moment)
        return timedelta(seconds=sum(shift.seconds for shift in self.shifts[:done]))

    def shifted_between(self, began: datetime, ended: datetime) -> timedelta:
        """Return the sum of the shifts that overlap these times."""
        touched = (s.seconds for s in self.shifts if s.ended >= began and s.began <= ended)
        return timedelta(seconds=sum(touched))

    def faults_on(self, spotify_user_id: int, began: datetime, ended: datetime | None) -> list[Fault]:
        return [fault for fault in self.faults if fault.affects(spotify_user_id, began, ended)]

    @cached_property
    def _shift_ends(self) -> list[datetime]:
        return [shift.ended for shift in self.shifts]


class SandboxTime:
    """Converts times of the sandbox's clock to real ones."""

    def __init__(self, shifts: Iterable[Shift]) -> None:
        self._eras: list[tuple[datetime, timedelta]] = []
        offset = timedelta(0)
        for shift in shifts:
            offset += timedelta(seconds=shift.seconds)
            self._eras.append((shift.began, offset))

    def real(self, moment: datetime) -> datetime:
        """Return the real time. Offsets only grow, so the newest one that fits is right."""
        for began, offset in reversed(self._eras):
            if moment - offset >= began - ROUNDING:
                return moment - offset
        return moment


def short_id(token: str) -> str:
    """Return the name by which the sandbox's journal refers to a token."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


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
            client_id=call["client_id"],
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
            grant["client_id"],
        )
        for grant in grants
        for token in grant[kind]
    }
