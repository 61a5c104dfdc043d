"""The checker reports each violation, in a history made for it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.chaos.checker import OVER, SUSPECT, check
from tests.chaos.history import (
    UNREADABLE,
    Attempt,
    Call,
    Change,
    Fault,
    History,
    Issued,
    ReturnedToken,
    SandboxTime,
    Shift,
)

START = datetime(2026, 11, 22, 7, tzinfo=UTC)
LIFE = timedelta(hours=1)
SPOTIFY_USER_ID, GRANT = 7, "a" * 32


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def correct_history(*, rotate: bool = False, refreshes: int = 2) -> History:
    """Return the correct history of a grant that was refreshed at 10 s and 20 s."""
    history = History()
    refresh = "rt0"
    issue(history, "at0", "rt0", made=at(0))
    history.changes.append(change("insert", at(0), 0, "at0", refresh))
    for generation in range(refreshes):
        began = at(10 * (generation + 1))
        presented, access = refresh, f"at{generation + 1}"
        refresh = f"rt{generation + 1}" if rotate else refresh
        issue(history, access, refresh, made=began)
        history.attempts.append(attempt(generation, began))
        history.calls.append(
            Call(
                n=generation + 1,
                at=began + timedelta(milliseconds=10),
                presented=presented,
                status=200,
                issued_refresh=refresh if rotate else None,
                issued_access=access,
            )
        )
        stored = change("update", began + timedelta(milliseconds=20), generation + 1, access, refresh)
        history.changes.append(replace(stored, expires_at=began + LIFE))
    return history


def issue(history: History, access: str, refresh: str, *, made: datetime, person: str = "mira") -> None:
    history.access_tokens[access] = Issued(access, True, person, made + LIFE)
    history.refresh_tokens[refresh] = Issued(refresh, True, person)


def change(kind: str, moment: datetime, generation: int, access: str | None, refresh: str | None) -> Change:
    return Change(
        kind=kind,  # type: ignore[arg-type]
        at=moment,
        spotify_user_id=SPOTIFY_USER_ID,
        grant=GRANT,
        generation=generation,
        state="active",
        access=access,
        refresh=refresh,
        spare=None,
        expires_at=START + LIFE,
    )


def attempt(generation: int, began: datetime, outcome: str | None = "refreshed") -> Attempt:
    name = hashlib.sha256(f"{generation} {began} {outcome}".encode()).hexdigest()[:32]
    ended = None if outcome is None else began + timedelta(milliseconds=20)
    return Attempt(SPOTIFY_USER_ID, GRANT, generation, name, outcome, outcome == "refreshed", began, ended)


def violations(history: History) -> list[str]:
    return check(history).violations


def violated(history: History) -> set[str]:
    """Return the rules that were violated."""
    return {sentence.partition(":")[0] for sentence in violations(history)}


@pytest.mark.parametrize("rotate", [False, True])
def test_correct_history_has_no_violations(rotate: bool) -> None:
    report = check(correct_history(rotate=rotate))

    assert report.violations == []
    assert (report.refreshes, report.calls, report.calls_per_generation) == (2, 2, {1: 2})


def test_violation_names_connection_grant_generation_and_attempt() -> None:
    history = correct_history()
    history.attempts[1] = replace(history.attempts[1], effective=False, outcome="superseded")

    [sentence] = violations(history)

    assert sentence.startswith(
        "I2: connection 7, grant aaaaaaaa, generation 1: it was refreshed with 0 effective"
    )
    assert history.attempts[1].attempt_id[:8] in sentence


def edit(records: list[Any], index: int, **members: Any) -> None:
    records[index] = replace(records[index], **members)


def repeat(records: list[Any], index: int, **members: Any) -> None:
    """Add a changed copy of a record."""
    records.append(replace(records[index], **members))


def delete_and_write(history: History) -> None:
    repeat(history.changes, 2, kind="delete", at=at(30))
    repeat(history.changes, 2, at=at(31))


VIOLATIONS: dict[str, tuple[Callable[[History], object], set[str]]] = {
    "skipped generation": (lambda h: edit(h.changes, 2, generation=3), {"I1", "I2"}),
    "repeated generation": (lambda h: repeat(h.changes, 1, at=at(30)), {"I1", "I3"}),
    "grant that does not start at zero": (lambda h: h.changes.pop(0), {"I1", "I2", "I4"}),
    "refresh without attempt": (lambda h: h.attempts.pop(), {"I2", "I4"}),
    "two effective attempts": (lambda h: h.attempts.append(attempt(1, at(21))), {"I2"}),
    "effective attempt without refresh": (lambda h: h.attempts.append(attempt(2, at(30))), {"I2"}),
    "unknown refresh token": (lambda h: edit(h.changes, 2, refresh="rt9"), {"I3", "I8"}),
    "access token of another grant": (lambda h: edit(h.calls, 1, presented="rt8"), {"I3", "I4"}),
    "response stored twice": (lambda h: edit(h.changes, 2, access="at1"), {"I3", "I6"}),
    "tokens changed without refresh": (lambda h: repeat(h.changes, 2, at=at(30), access="at1"), {"I3"}),
    "empty token": (lambda h: repeat(h.changes, 2, at=at(30), refresh=None), {"I3"}),
    "call without claim": (lambda h: h.calls.append(Call(9, at(30), "rt0", 200)), {"I4"}),
    "attempt with two calls": (lambda h: repeat(h.calls, 0, n=9, issued_access="at9"), {"I4"}),
    "call after end of attempt": (lambda h: edit(h.calls, 1, at=at(29)), {"I4"}),
    "write after disconnect": (delete_and_write, {"I5"}),
    "token encrypted for another grant": (lambda h: edit(h.changes, 2, refresh=UNREADABLE), {"I5"}),
    "expiry stored too late": (lambda h: edit(h.changes, 2, expires_at=at(21) + LIFE), {"I6"}),
    "access token unknown to sandbox": (lambda h: h.access_tokens.pop("at0"), {"I6"}),
    "connection not fresh in time": (lambda h: h.stale.append("connection 7 was not fresh"), {"I7"}),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_checker_reports(violation: str) -> None:
    violate, rules = VIOLATIONS[violation]
    history = correct_history()
    violate(history)

    assert violated(history) == rules


def test_checker_reports_new_refresh_token_not_stored() -> None:
    history = correct_history(rotate=True)
    history.changes[2] = replace(history.changes[2], refresh="rt1")

    assert violated(history) == {"I3"}


def test_checker_accepts_only_issued_spares() -> None:
    history = correct_history(rotate=True)
    last = history.changes[-1]
    call = Call(9, at(25), "rt2", 200, issued_refresh="rt3", issued_access="at3")
    history.calls.append(call)
    history.attempts.append(attempt(2, call.at, None))
    history.changes += [
        replace(last, at=at(30), spare="rt3"),
        replace(last, at=at(31), refresh="rt3", spare=None),
    ]
    assert violations(history) == []

    history.changes[-2:] = [replace(last, at=at(30), spare="rt9")]
    assert violated(history) == {"I3"}


def test_checker_reports_second_call_without_fault() -> None:
    history = correct_history()
    history.attempts.append(attempt(1, at(19), "unavailable"))
    history.calls.insert(1, Call(8, at(19), "rt0", 502))
    assert violated(history) == {"I4"}

    history.faults.append(Fault("killed", at(19), at(19), frozenset({SPOTIFY_USER_ID})))
    assert violations(history) == []


def test_checker_ignores_faults_of_other_connections_and_times() -> None:
    history = correct_history()
    history.attempts.append(attempt(1, at(19), "unavailable"))
    history.calls.insert(1, Call(8, at(19), "rt0", 502))
    history.faults += [
        Fault("killed", at(19), at(19), frozenset({SPOTIFY_USER_ID + 1})),
        Fault("killed", at(5), at(5)),
        Fault("killed", at(25), at(25)),
    ]

    assert violated(history) == {"I4"}


def test_checker_accepts_second_call_after_sandbox_fault() -> None:
    history = correct_history()
    history.attempts.append(attempt(1, at(19), "unavailable"))
    history.calls.insert(1, Call(8, at(19), "rt0", 502, fault="google_502"))
    assert violations(history) == []

    history.calls[1] = replace(history.calls[1], fault="park")
    assert violated(history) == {"I4"}


def test_checker_reports_write_of_old_grant_after_new_consent() -> None:
    history = correct_history()
    issue(history, "at-new", "rt-new", made=at(30))
    new = replace(change("update", at(30), 0, "at-new", "rt-new"), grant="b" * 32)
    history.changes += [new, replace(history.changes[-1], at=at(31))]

    assert violated(history) == {"I5"}


def test_checker_reports_token_returned_to_another_person() -> None:
    history = correct_history()
    history.returned.append(ReturnedToken(at(12), "mira", "at1"))
    assert violations(history) == []

    history.returned.append(ReturnedToken(at(12), "jonas", "at1"))
    assert violated(history) == {"I5"}


def test_checker_accounts_for_advanced_time() -> None:
    history = correct_history()
    history.shifts.append(Shift(at(15), at(15.1), 3600))
    history.access_tokens["at2"] = replace(
        history.access_tokens["at2"], expires_at=at(20) + LIFE + timedelta(seconds=3600)
    )
    assert violations(history) == []

    history.access_tokens["at2"] = replace(history.access_tokens["at2"], expires_at=at(20) + LIFE)
    assert violated(history) == {"I6"}


def end_grant(history: History, *, rejected: bool = True, suspect: bool = True) -> History:
    """Let Spotify reject the grant, and end it."""
    last = history.changes[-1]
    if rejected:
        history.attempts.append(attempt(2, at(30), "invalid_grant"))
        history.calls.append(Call(9, at(30), last.refresh, 400))
    if suspect:
        last = replace(last, at=at(31), state=SUSPECT)
        history.changes.append(last)
    history.changes.append(replace(last, at=at(40), state=OVER))
    return history


def invalidate(history: History, token: str) -> History:
    history.refresh_tokens[token] = replace(history.refresh_tokens[token], live=False)
    return history


def test_checker_accepts_end_of_revoked_grant() -> None:
    history = invalidate(end_grant(correct_history()), "rt0")
    history.faults.append(Fault("revoked", at(25), None, frozenset({SPOTIFY_USER_ID})))

    assert violations(history) == []


def test_checker_reports_end_of_valid_grant() -> None:
    assert violated(end_grant(correct_history())) == {"I8"}


def test_checker_reports_suspect_grant_without_rejection() -> None:
    history = invalidate(end_grant(correct_history(), rejected=False), "rt0")
    history.faults.append(Fault("revoked", at(25), None, frozenset({SPOTIFY_USER_ID})))

    assert violated(history) == {"I8"}


def test_checker_counts_grants_destroyed_by_provider() -> None:
    history = correct_history(rotate=True)
    lost = Call(8, at(25), "rt2", None, fault="close", issued_refresh="rt3", issued_access="at3")
    history.calls.append(lost)
    history.attempts.append(attempt(2, lost.at, "unavailable"))
    report = check(invalidate(end_grant(history), "rt2"))

    assert report.violations == []
    assert report.destroyed_by_provider == ["connection 7, grant aaaaaaaa, generation 2"]


def test_checker_reports_token_lost_without_fault() -> None:
    assert violated(invalidate(end_grant(correct_history(rotate=True)), "rt2")) == {"I8"}


def test_checker_reports_lost_token_before_grant_ends() -> None:
    history = invalidate(correct_history(rotate=True), "rt2")
    assert violated(history) == {"I8"}

    history.faults.append(Fault("killed", at(25), at(25)))
    report = check(history)
    assert (report.violations, len(report.destroyed_by_provider)) == ([], 1)


def test_checker_requires_destroyed_grant_to_be_suspect_first() -> None:
    history = invalidate(end_grant(correct_history(rotate=True), suspect=False), "rt2")
    history.faults.append(Fault("killed", at(25), at(25)))

    assert violated(history) == {"I8"}


def test_sandbox_times_are_converted_to_real_ones() -> None:
    time = SandboxTime([Shift(at(10), at(10.1), 31), Shift(at(20), at(20.1), 3600)])

    assert time.real(at(5)) == at(5)
    assert time.real(at(12 + 31)) == at(12)
    assert time.real(at(21 + 3631)) == at(21)
