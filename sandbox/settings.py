"""The sandbox's settings and their validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox.people import People
from sandbox.scopes import IN_WORDS

MODES = ("dev2026", "transition", "legacy")
UNAUTHORIZED_WORDINGS = ("new", "old")
SIX_MONTH_WORDINGS = ("revoked", "expired")
MAX_LATENCY_MS = 60_000


class BadRequestBody(Exception):
    """A control call with something the sandbox does not know. Returned as a 422."""

    def __init__(self, message: str, allowed: list[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.allowed = allowed


@dataclass
class Settings:
    """Everything that can be changed while the sandbox runs."""

    rotate: bool = False
    """Whether each refresh issues a new refresh token and ends the old one."""
    rotate_public: bool = True
    """Whether refreshes of grants made without the client secret do so in any case."""
    rotation_grace_s: int = 0
    """For how many seconds a replaced refresh token still works. Each use issues another new one."""
    expires_in: int = 3600
    """Lifetime of new access tokens, in seconds."""
    mode: str = "dev2026"
    """Field names and endpoints: of new development-mode apps, both old and new, or old only."""
    any_id: bool = False
    """Whether every well-formed id has an item, as it always has in `legacy` mode."""
    account_id: bool = True
    """Whether GET /me includes `account_id`."""
    latency_ms: dict[str, int] = field(default_factory=lambda: {"token": 0, "api": 0})
    """A delay added to every call before it takes effect."""
    unauthorized_wording: str = "new"
    """The 401 message: one text for all cases, or one text for each."""
    six_month_wording: str = "revoked"
    """The error for a refresh token older than six months. Both have been reported."""
    granted_scopes: list[str] | None = None
    """The only scopes that are granted; None: whatever is requested."""
    auto_consent: str | None = None
    """The id of a person who agrees at once, without a consent page."""
    outage: bool = False
    """Whether every call to either host fails with a 502 and an HTML page."""

    @property
    def invents(self) -> bool:
        """Whether every well-formed id has an item."""
        return self.any_id or self.mode == "legacy"

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)

    def rotates(self, *, public: bool) -> bool:
        """Return whether refreshing a grant replaces its refresh token."""
        return self.rotate or (self.rotate_public and public)

    def granted(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of the requested scopes are granted."""
        allowed = self.granted_scopes
        return tuple(scope for scope in asked if allowed is None or scope in allowed)

    def patch(self, changes: dict[str, Any], people: People) -> None:
        """Apply all changes, or none.

        Raises:
            BadRequestBody: If a member is unknown or invalid.
        """
        checks = _checks(people)
        for name, value in changes.items():
            if name not in checks:
                raise BadRequestBody(f"unknown setting: {name}", sorted(checks))
            expected = checks[name](value)
            if expected:
                raise BadRequestBody(f"{name} must be {expected}")
        for name, value in changes.items():
            setattr(self, name, {**self.latency_ms, **value} if name == "latency_ms" else value)


def is_whole(value: object, least: int = 0, most: int | None = None) -> bool:
    """Return whether the value is an int (not a bool) within bounds."""
    return type(value) is int and value >= least and (most is None or value <= most)


def _checks(people: People) -> dict[str, Callable[[Any], str | None]]:
    """Return, for each setting, a function that returns what the value should have been, or None."""
    return {
        "rotate": _boolean,
        "rotate_public": _boolean,
        "rotation_grace_s": lambda v: None if is_whole(v) else "a whole number of seconds",
        "expires_in": lambda v: None if is_whole(v, 1) else "a positive whole number of seconds",
        "mode": _one_of(MODES),
        "any_id": _boolean,
        "account_id": _boolean,
        "latency_ms": _latency,
        "unauthorized_wording": _one_of(UNAUTHORIZED_WORDINGS),
        "six_month_wording": _one_of(SIX_MONTH_WORDINGS),
        "granted_scopes": _scopes,
        "auto_consent": lambda v: _check_person(v, people),
        "outage": _boolean,
    }


def _check_person(value: Any, people: People) -> str | None:
    fits = value is None or (isinstance(value, str) and people.named(value))
    return None if fits else f"null or one of {', '.join(person.id for person in people.defaults)}"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def _latency(value: Any) -> str | None:
    fits = isinstance(value, dict) and all(
        name in ("token", "api") and is_whole(ms, 0, MAX_LATENCY_MS) for name, ms in value.items()
    )
    return None if fits else f'{{"token": ms, "api": ms}} with 0 to {MAX_LATENCY_MS} each'


def _scopes(value: Any) -> str | None:
    fits = value is None or (isinstance(value, list) and all(scope in IN_WORDS for scope in value))
    return None if fits else "null or a list of known scopes"
