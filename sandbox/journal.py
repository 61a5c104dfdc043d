"""What has been asked of the sandbox, written down as it arrives."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sandbox.grants import short_id

# A long run of refreshes fits in; each call takes about a kilobyte.
KEPT = 200_000
_SECRET_PARAMETERS = {"access_token", "client_secret", "code", "code_verifier", "refresh_token", "state"}


@dataclass
class Call:
    """One call to either host. Tokens and codes appear as short ids only."""

    n: int = 0
    at: str = ""
    finished_at: str | None = None
    """When the answer was ready. None: still being worked on, or held by a fault."""
    method: str = ""
    path: str = ""
    query: str = ""
    status: int | None = None
    """None where no answer is sent, or not yet."""
    client_auth: str | None = None
    grant_type: str | None = None
    refresh_token_id: str | None = None
    code_id: str | None = None
    access_token_id: str | None = None
    grant: int | None = None
    """The number of the grant that a token call is about, as far as there is one."""
    issued_refresh_token_id: str | None = None
    issued_access_token_id: str | None = None
    """What a token call has handed out. It stands here from the moment the call takes effect, and
    whatever becomes of the answer; None where nothing new was issued."""
    person: str | None = None
    fault: str | None = None
    headers: list[str] = field(default_factory=list)
    """The names of the headers sent, lower case and sorted."""
    body_bytes: int = 0
    targets: frozenset[str] = frozenset()
    """What faults may be aimed at this call; not shown."""

    def as_json(self) -> dict[str, Any]:
        # Not `asdict`, whose deep copies would make a long journal slow to read.
        return {name: value for name, value in vars(self).items() if name != "targets"}


def without_secrets(query: str) -> str:
    """The query as it came, but with the values of codes, states and tokens as short ids."""
    return "&".join(_masked(pair) for pair in query.split("&"))


def _masked(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={short_id(value)}" if equals and name in _SECRET_PARAMETERS else pair


class Journal:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque(maxlen=KEPT)
        self._count = 0

    def open(self, call: Call, at: str) -> Call:
        """Write the call down before anything is done about it."""
        with self._lock:
            self._count += 1
            call.n, call.at = self._count, at
            self._calls.append(call)
        return call

    def close(self, call: Call, status: int | None, at: str) -> None:
        with self._lock:
            call.status, call.finished_at = status, at

    def clear(self) -> None:
        with self._lock:
            self._calls.clear()
            self._count = 0

    def calls(self, after: int = 0, path: str | None = None, grant_type: str | None = None) -> list[Call]:
        """Calls with a number above `after`, oldest first. Older ones are not even looked at."""
        with self._lock:
            newest_first = list(islice(reversed(self._calls), max(0, self._count - after)))
        return [
            call
            for call in reversed(newest_first)
            if path in (None, call.path) and grant_type in (None, call.grant_type)
        ]

    def newest(self, how_many: int) -> list[Call]:
        """Newest first."""
        with self._lock:
            return list(islice(reversed(self._calls), how_many))

    def forgotten(self) -> int:
        """The number of the last call that is no longer kept; 0: all are."""
        with self._lock:
            return self._count - len(self._calls)
