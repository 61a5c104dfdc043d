"""A record of all calls to the sandbox."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sandbox.grants import short_id

# Enough for a long run of refreshes. A call takes about 1 kB.
KEPT = 200_000
_SECRET_PARAMETERS = {"access_token", "client_secret", "code", "code_verifier", "refresh_token", "state"}


@dataclass
class Call:
    """One call to either host. Tokens and codes appear as short ids only."""

    n: int = 0
    at: str = ""
    finished_at: str | None = None
    """When the response was ready. None: in progress, or held by a fault."""
    method: str = ""
    path: str = ""
    query: str = ""
    status: int | None = None
    """None if no response was sent, or not yet."""
    client_id: str | None = None
    """What the caller sent, or whose access token it is."""
    client_auth: str | None = None
    grant_type: str | None = None
    refresh_token_id: str | None = None
    code_id: str | None = None
    access_token_id: str | None = None
    grant: int | None = None
    """The number of the grant that a token call concerns, if any."""
    issued_refresh_token_id: str | None = None
    issued_access_token_id: str | None = None
    """What a token call issued, even if its response was lost; None if nothing new was issued."""
    person: str | None = None
    fault: str | None = None
    headers: list[str] = field(default_factory=list)
    """The names of the headers sent, lower case and sorted."""
    body_bytes: int = 0
    targets: frozenset[str] = frozenset()
    """The fault targets that include this call. Not shown."""

    def as_json(self) -> dict[str, Any]:
        # Not `asdict`: its deep copies make a long journal slow to read.
        """Return the call as JSON."""
        return {name: value for name, value in vars(self).items() if name != "targets"}


def without_secrets(query: str) -> str:
    """Return the query with codes, states, and tokens replaced by short ids."""
    return "&".join(_masked(pair) for pair in query.split("&"))


def _masked(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={short_id(value)}" if equals and name in _SECRET_PARAMETERS else pair


class Journal:
    """The most recent calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque(maxlen=KEPT)
        self._count = 0

    def open(self, call: Call, at: str) -> Call:
        """Record the call before it is handled."""
        with self._lock:
            self._count += 1
            call.n, call.at = self._count, at
            self._calls.append(call)
        return call

    def close(self, call: Call, status: int | None, at: str) -> None:
        """Record how the call ended."""
        with self._lock:
            call.status, call.finished_at = status, at

    def clear(self) -> None:
        """Drop all calls."""
        with self._lock:
            self._calls.clear()
            self._count = 0

    def calls(
        self,
        after: int = 0,
        path: str | None = None,
        grant_type: str | None = None,
        client_id: str | None = None,
    ) -> list[Call]:
        """Return the calls with a number above `after`, oldest first, without scanning older ones."""
        with self._lock:
            newest_first = list(islice(reversed(self._calls), max(0, self._count - after)))
        return [
            call
            for call in reversed(newest_first)
            if path in (None, call.path)
            and grant_type in (None, call.grant_type)
            and client_id in (None, call.client_id)
        ]

    def newest(self, how_many: int) -> list[Call]:
        """Return the most recent calls, newest first."""
        with self._lock:
            return list(islice(reversed(self._calls), how_many))

    def forgotten(self) -> int:
        """Return the number of the last dropped call; 0 if all are kept."""
        with self._lock:
            return self._count - len(self._calls)
