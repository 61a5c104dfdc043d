"""What has been asked of the sandbox, written down as it arrives."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox.grants import short_id

KEPT = 50_000
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
    person: str | None = None
    fault: str | None = None
    headers: list[str] = field(default_factory=list)
    """The names of the headers sent, lower case and sorted."""
    body_bytes: int = 0
    targets: frozenset[str] = frozenset()
    """What faults may be aimed at this call; not shown."""

    def as_json(self) -> dict[str, Any]:
        shown = asdict(self)
        del shown["targets"]
        return shown


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

    def as_json(self) -> list[dict[str, Any]]:
        with self._lock:
            return [call.as_json() for call in self._calls]
