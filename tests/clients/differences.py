"""The outcomes that differ through Backline, and why. No other outcome may differ."""

from dataclasses import dataclass
from typing import Any

from tests.clients.recording import Outcome


@dataclass(frozen=True)
class Difference:
    """The last statuses, directly (None: no response) and through Backline, and the reason."""

    directly: int | None
    through_backline: int
    reason: str
    only_in_body: bool = False
    """Whether only libraries that show the whole body of an error show the difference."""


_PROBLEM = "the body is a problem document, which has Spotify's error as a member"
_ONE_STATUS = "a missing permission is always a 403, so that apps handle it in one place (insufficient-scope)"
_READ = "a read without a response is tried again, and then reported as spotify-unavailable"
_WRITE = "a write without a response is reported as spotify-outcome-unknown, which no library repeats"
_CALLS = ("read", "poll", "command")

DIFFERENCES = {
    "unknown token": Difference(401, 401, _PROBLEM, only_in_body=True),
    **{f"missing permission, 401, {call}": Difference(401, 403, _ONE_STATUS) for call in _CALLS},
    **{f"missing scope, {call}": Difference(403, 403, _PROBLEM, only_in_body=True) for call in _CALLS},
    "lost response, read": Difference(None, 503, _READ),
    "lost response, poll": Difference(None, 503, _READ),
    "lost response, command": Difference(None, 409, _WRITE),
    **{f"rate limit, {call}": Difference(429, 429, _PROBLEM, only_in_body=True) for call in _CALLS},
}


def differing(directly: dict[str, Outcome], through_backline: dict[str, Outcome]) -> set[str]:
    """Return the labels of the calls whose outcomes differ, or that only one of the runs made."""
    labels = {*directly, *through_backline}
    return {label for label in labels if directly.get(label) != through_backline.get(label)}


def unexpected_differences(
    directly: dict[str, Outcome], through_backline: dict[str, Outcome], *, shows_bodies: bool
) -> dict[str, tuple[Outcome | None, Outcome | None]]:
    """Return the outcomes that differ in another way than `DIFFERENCES` says, by label."""
    expected = {
        label: difference
        for label, difference in DIFFERENCES.items()
        if shows_bodies or not difference.only_in_body
    }
    return {
        label: (directly.get(label), through_backline.get(label))
        for label in sorted(differing(directly, through_backline))
        if not _is_expected(expected.get(label), directly.get(label), through_backline.get(label))
    }


def _is_expected(
    difference: Difference | None, directly: Outcome | None, through_backline: Outcome | None
) -> bool:
    if difference is None or directly is None or through_backline is None:
        return False
    statuses = _status(directly), _status(through_backline)
    return statuses == (difference.directly, difference.through_backline)


def _status(outcome: Outcome) -> Any:
    """Return the status of the last response; None without one."""
    return outcome["responses"][-1][2] if outcome["responses"] else None
