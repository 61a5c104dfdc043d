"""Faults that tests inject into upcoming calls."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sandbox.fault_responses import RESPONSES, TRANSPORT
from sandbox.journal import Call
from sandbox.settings import BadRequestBody, is_whole

TARGETS = ("token", "refresh", "code", "me", "api", "player", "command", "authorize")
HOLDING = ("park", "slow", "timeout")
KINDS = sorted({*RESPONSES, *TRANSPORT, *HOLDING})
RATE_LIMIT_BODIES = ("text", "json", "quota", "empty")

LONGEST_PARK_S = 60.0
LONGEST_HOLD_S = 120.0
MAX_BYTES = 1024 * 1024 * 1024


@dataclass(eq=False)
class Fault:
    """A fault, and the calls that it applies to."""

    on: str
    kind: str
    times: int | None = 1
    """How many more calls it applies to; None: all, until it is removed."""
    after_effect: bool = False
    """The call takes effect, and only its response is lost or damaged."""
    person: str | None = None
    """Apply only to calls of the person with this id."""
    client_id: str | None = None
    """Apply only to calls of the application with this client id."""
    after_calls: int = 0
    """How many calls to skip first."""
    chance: float = 1
    """The probability of applying to a call. Skipped calls do not count toward `times`."""
    seed: int | None = None
    """The seed of `chance`. It is shown even if none was given, so that a run can be repeated."""
    retry_after: int | None = None
    """Value of the Retry-After header, for any kind that sends a response."""
    body: str = "json"
    """The body of `rate_limited`."""
    seconds: float | None = None
    """How long `park`, `slow` and `timeout` hold, and how long `drip` drips."""
    members: dict[str, Any] = field(default_factory=dict)
    """What `changed_members` merges into the JSON object of the response."""
    location: str = "https://elsewhere.invalid/"
    """Where `redirect_302` and `redirect_307` point."""
    bytes: int = 64 * 1024 * 1024
    """Size of `huge_body` and `gzip_bomb`."""
    met: int = 0
    """How many calls it has applied to so far. Read-only."""
    _random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.seed is None:
            self.seed = secrets.randbits(32)
        self._random = Random(self.seed)

    def matches(self, call: Call) -> bool:
        """Return whether the fault applies to this call. Each check counts a call and draws a number."""
        if self.on not in call.targets or self.person not in (None, call.person):
            return False
        if self.client_id not in (None, call.client_id):
            return False
        if self.after_calls:
            self.after_calls -= 1
            return False
        return self._random.random() < self.chance

    def as_json(self) -> dict[str, Any]:
        """Return the fault as the control API shows it."""
        return {name: value for name, value in vars(self).items() if name != "_random"}


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "on": (lambda v: v in TARGETS, f"one of {', '.join(TARGETS)}"),
    "kind": (lambda v: v in KINDS, f"one of {', '.join(KINDS)}"),
    "times": (lambda v: v is None or is_whole(v, 1), "null or a whole number above 0"),
    "after_effect": (lambda v: isinstance(v, bool), "true or false"),
    "person": (lambda v: v is None or isinstance(v, str), "null or a person's id"),
    "client_id": (lambda v: v is None or isinstance(v, str), "null or a client id"),
    "after_calls": (is_whole, "a whole number"),
    "chance": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "seed": (lambda v: v is None or type(v) is int, "null or a whole number"),
    "retry_after": (lambda v: v is None or is_whole(v), "null or a whole number of seconds"),
    "body": (lambda v: v in RATE_LIMIT_BODIES, f"one of {', '.join(RATE_LIMIT_BODIES)}"),
    "seconds": (
        lambda v: _is_number(v) and 0 <= v <= LONGEST_HOLD_S,
        f"0 to {LONGEST_HOLD_S:g}",
    ),
    "members": (lambda v: isinstance(v, dict), "a JSON object"),
    "location": (lambda v: isinstance(v, str) and v != "" and v.isprintable(), "a URL"),
    "bytes": (lambda v: is_whole(v, 1, MAX_BYTES), f"1 to {MAX_BYTES}"),
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_fault(members: dict[str, Any]) -> Fault:
    """Build a fault from the body of a control call.

    Raises:
        BadRequestBody: If a member is missing, unknown, or invalid.
    """
    for name, value in members.items():
        if name not in _CHECKS:
            raise BadRequestBody(f"unknown member: {name}", sorted(_CHECKS))
        fits, expected = _CHECKS[name]
        if not fits(value):
            allowed = {"kind": KINDS, "on": list(TARGETS)}.get(name)
            raise BadRequestBody(f"{name} must be {expected}", allowed)
    if "on" not in members or "kind" not in members:
        raise BadRequestBody("on and kind are required", sorted(_CHECKS))
    return Fault(**members)


class FaultRegistry:
    """The active faults, oldest first, and the calls that they hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        # Faults that can still apply. Used-up faults stay listed, but are no longer checked.
        self._ready: list[Fault] = []
        self._released = threading.Event()
        self._held = 0

    def add(self, fault: Fault) -> None:
        """Add a fault."""
        with self._lock:
            self._faults.append(fault)
            self._ready.append(fault)

    def take(self, call: Call) -> Fault | None:
        """Return the oldest fault that applies to this call, and count it down."""
        with self._lock:
            fault = next((fault for fault in self._ready if fault.matches(call)), None)
            if fault:
                fault.met += 1
                fault.times = None if fault.times is None else fault.times - 1
                if fault.times == 0:
                    self._ready.remove(fault)
            return fault

    def hold(self, fault: Fault) -> None:
        """Hold the calling thread until it is released or the fault's time is over."""
        longest = LONGEST_PARK_S if fault.kind == "park" else LONGEST_HOLD_S
        with self._lock:
            released = self._released
            self._held += 1
        released.wait(min(longest, longest if fault.seconds is None else fault.seconds))
        with self._lock:
            self._held -= 1

    def release(self) -> int:
        """Release every held call. Returns how many there were."""
        with self._lock:
            self._released.set()
            self._released = threading.Event()
            return self._held

    def clear(self) -> None:
        """Remove all faults and release the calls that they hold."""
        with self._lock:
            self._faults.clear()
            self._ready.clear()
        self.release()

    def remove_for(self, client_id: str) -> None:
        """Remove the faults of one application. Calls that they hold stay held."""
        with self._lock:
            self._faults = [fault for fault in self._faults if fault.client_id != client_id]
            self._ready = [fault for fault in self._ready if fault.client_id != client_id]

    def as_json(self) -> dict[str, Any]:
        """Return the faults and the number of held calls."""
        with self._lock:
            return {"faults": [fault.as_json() for fault in self._faults], "held": self._held}
