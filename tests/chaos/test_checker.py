"""The checker can fail: a history of its own for each thing that must never happen."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.chaos.checker import OVER, SUSPECT, check
from tests.chaos.history import (
    UNREADABLE,
    Attempt,
    Call,
    Change,
    Fault,
    Handed,
    History,
    Issued,
    SandboxTime,
    Shift,
)

START = datetime(2026, 11, 22, 7, tzinfo=UTC)
LIFE = timedelta(hours=1)
LINK, GRANT = 7, "a" * 32


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def story(*, rotate: bool = False, refreshes: int = 2) -> History:
    """A grant that was refreshed twice, at 10 s and 20 s, with everything as it should be."""
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
        link=LINK,
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
    return Attempt(LINK, GRANT, generation, name, outcome, outcome == "refreshed", began, ended)


def violations(history: History) -> list[str]:
    return check(history).violations


def violated(history: History) -> set[str]:
    """The rules that were broken."""
    return {sentence.partition(":")[0] for sentence in violations(history)}


@pytest.mark.parametrize("rotate", [False, True])
def test_a_faultless_history_is_found_faultless(rotate: bool) -> None:
    report = check(story(rotate=rotate))

    assert report.violations == []
    assert (report.refreshes, report.calls, report.calls_per_generation) == (2, 2, {1: 2})


def test_a_violation_names_link_grant_generation_and_attempt() -> None:
    history = story()
    history.attempts[1] = replace(history.attempts[1], effective=False, outcome="superseded")

    [sentence] = violations(history)

    assert sentence.startswith("I2: link 7, grant aaaaaaaa, generation 1: it was refreshed with 0 effective")
    assert history.attempts[1].attempt_id[:8] in sentence


def test_i1_a_generation_is_left_out() -> None:
    history = story()
    history.changes[2] = replace(history.changes[2], generation=3)

    assert "I1" in violated(history)


def test_i1_a_generation_is_repeated() -> None:
    history = story()
    history.changes.append(replace(history.changes[1], at=at(30)))

    assert "I1" in violated(history)


def test_i1_a_grant_does_not_begin_at_nought() -> None:
    history = story()
    del history.changes[0]

    assert "I1" in violated(history)


def test_i2_a_refresh_without_an_attempt() -> None:
    history = story()
    del history.attempts[1]

    assert "I2" in violated(history)


def test_i2_two_effective_attempts_for_one_generation() -> None:
    history = story()
    history.attempts.append(attempt(1, at(21)))

    assert violated(history) == {"I2"}


def test_i2_an_effective_attempt_without_a_refresh() -> None:
    history = story()
    history.attempts.append(attempt(2, at(30)))

    assert violated(history) == {"I2"}


def test_i3_a_refresh_token_from_nowhere() -> None:
    history = story()
    history.changes[2] = replace(history.changes[2], refresh="rt9")

    assert "I3" in violated(history)


def test_i3_the_old_refresh_token_is_kept_though_a_new_one_came() -> None:
    history = story(rotate=True)
    history.changes[2] = replace(history.changes[2], refresh="rt1")

    assert violated(history) == {"I3"}


def test_i3_an_access_token_that_was_issued_for_another_grants_token() -> None:
    history = story()
    history.calls[1] = replace(history.calls[1], presented="rt8")

    assert "I3" in violated(history)


def test_i3_one_answer_stored_twice() -> None:
    history = story()
    history.changes[2] = replace(history.changes[2], access="at1")

    assert "I3" in violated(history)


def test_i3_tokens_change_without_a_refresh() -> None:
    history = story()
    history.changes.append(replace(history.changes[2], at=at(30), access="at1"))

    assert violated(history) == {"I3"}


def test_i3_a_token_is_blank() -> None:
    history = story()
    history.changes.append(replace(history.changes[2], at=at(30), refresh=None))

    assert violated(history) == {"I3"}


def test_i3_a_spare_may_take_over_but_only_one_that_was_issued() -> None:
    history = story(rotate=True)
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


def test_i4_two_calls_for_a_generation_with_nothing_broken() -> None:
    history = story()
    history.attempts.append(attempt(1, at(19), "unavailable"))
    history.calls.insert(1, Call(8, at(19), "rt0", 502))
    assert violated(history) == {"I4"}

    history.faults.append(Fault("killed", at(19), at(19), frozenset({LINK})))
    assert violations(history) == []


def test_i4_a_fault_of_another_link_or_time_excuses_nothing() -> None:
    history = story()
    history.attempts.append(attempt(1, at(19), "unavailable"))
    history.calls.insert(1, Call(8, at(19), "rt0", 502))
    history.faults += [
        Fault("killed", at(19), at(19), frozenset({LINK + 1})),
        Fault("killed", at(5), at(5)),
        Fault("killed", at(25), at(25)),
    ]

    assert violated(history) == {"I4"}


def test_i4_a_fault_of_the_sandboxs_excuses_its_own_call() -> None:
    history = story()
    history.attempts.append(attempt(1, at(19), "unavailable"))
    history.calls.insert(1, Call(8, at(19), "rt0", 502, fault="google_502"))
    assert violations(history) == []

    history.calls[1] = replace(history.calls[1], fault="park")
    assert violated(history) == {"I4"}


def test_i4_a_call_that_nobody_had_claimed() -> None:
    history = story()
    history.calls.append(Call(9, at(30), "rt0", 200))

    assert violated(history) == {"I4"}


def test_i4_an_attempt_that_calls_twice() -> None:
    history = story()
    history.calls.insert(1, replace(history.calls[0], n=9, issued_access="at9"))

    assert violated(history) == {"I4"}


def test_i4_a_call_after_its_attempt_had_ended() -> None:
    history = story()
    history.calls[1] = replace(history.calls[1], at=at(29))

    assert violated(history) == {"I4"}


def test_i5_a_write_after_a_disconnect() -> None:
    history = story()
    last = history.changes[-1]
    history.changes += [replace(last, kind="delete", at=at(30)), replace(last, at=at(31))]

    assert violated(history) == {"I5"}


def test_i5_a_write_of_the_old_grant_after_linking_anew() -> None:
    history = story()
    issue(history, "at-new", "rt-new", made=at(30))
    new = replace(change("update", at(30), 0, "at-new", "rt-new"), grant="b" * 32)
    history.changes += [new, replace(history.changes[-1], at=at(31))]

    assert violated(history) == {"I5"}


def test_i5_a_token_sealed_for_another_grant() -> None:
    history = story()
    history.changes[2] = replace(history.changes[2], refresh=UNREADABLE)

    assert violated(history) == {"I5"}


def test_i5_a_client_is_given_anothers_token() -> None:
    history = story()
    history.handed.append(Handed(at(12), "mira", "at1"))
    assert violations(history) == []

    history.handed.append(Handed(at(12), "jonas", "at1"))
    assert violated(history) == {"I5"}


def test_i6_an_expiry_that_is_stored_too_late() -> None:
    history = story()
    history.changes[2] = replace(history.changes[2], expires_at=at(21) + LIFE)

    assert violated(history) == {"I6"}


def test_i6_time_that_was_made_to_pass_is_reckoned_with() -> None:
    history = story()
    history.shifts.append(Shift(at(15), at(15.1), 3600))
    history.access_tokens["at2"] = replace(
        history.access_tokens["at2"], expires_at=at(20) + LIFE + timedelta(seconds=3600)
    )
    assert violations(history) == []

    history.access_tokens["at2"] = replace(history.access_tokens["at2"], expires_at=at(20) + LIFE)
    assert violated(history) == {"I6"}


def test_i6_an_access_token_that_the_sandbox_does_not_know() -> None:
    history = story()
    del history.access_tokens["at0"]

    assert violated(history) == {"I6"}


def test_i7_what_was_not_fresh_in_time() -> None:
    history = story()
    history.stale.append("link 7 was not fresh 60 s after the last fault")

    assert violated(history) == {"I7"}


def over(history: History, *, refused: bool = True, suspect: bool = True) -> History:
    """Let the grant be called revoked, and given up."""
    last = history.changes[-1]
    if refused:
        history.attempts.append(attempt(2, at(30), "invalid_grant"))
        history.calls.append(Call(9, at(30), last.refresh, 400))
    if suspect:
        last = replace(last, at=at(31), state=SUSPECT)
        history.changes.append(last)
    history.changes.append(replace(last, at=at(40), state=OVER))
    return history


def dead(history: History, token: str) -> History:
    history.refresh_tokens[token] = replace(history.refresh_tokens[token], live=False)
    return history


def test_i8_a_revoked_grant_may_be_given_up() -> None:
    history = dead(over(story()), "rt0")
    history.faults.append(Fault("revoked", at(25), None, frozenset({LINK})))

    assert violations(history) == []


def test_i8_a_good_grant_is_given_up() -> None:
    assert violated(over(story())) == {"I8"}


def test_i8_a_grant_becomes_suspect_without_a_refusal() -> None:
    history = dead(over(story(), refused=False), "rt0")
    history.faults.append(Fault("revoked", at(25), None, frozenset({LINK})))

    assert violated(history) == {"I8"}


def test_i8_what_the_provider_destroyed_is_counted_apart() -> None:
    history = story(rotate=True)
    lost = Call(8, at(25), "rt2", None, fault="close", issued_refresh="rt3", issued_access="at3")
    history.calls.append(lost)
    history.attempts.append(attempt(2, lost.at, "unavailable"))
    report = check(dead(over(history), "rt2"))

    assert report.violations == []
    assert report.destroyed_by_provider == ["link 7, grant aaaaaaaa, generation 2"]


def test_i8_a_token_that_is_lost_with_nothing_broken() -> None:
    assert violated(dead(over(story(rotate=True)), "rt2")) == {"I8"}


def test_i8_a_token_that_is_lost_is_noticed_before_its_grant_is_given_up() -> None:
    history = dead(story(rotate=True), "rt2")
    assert violated(history) == {"I8"}

    history.faults.append(Fault("killed", at(25), at(25)))
    report = check(history)
    assert (report.violations, len(report.destroyed_by_provider)) == ([], 1)


def test_i8_what_the_provider_destroyed_has_to_be_suspect_first() -> None:
    history = dead(over(story(rotate=True), suspect=False), "rt2")
    history.faults.append(Fault("killed", at(25), at(25)))

    assert violated(history) == {"I8"}


def test_the_sandboxs_clock_is_turned_back_to_ours() -> None:
    time = SandboxTime([Shift(at(10), at(10.1), 31), Shift(at(20), at(20.1), 3600)])

    assert time.real(at(5)) == at(5)
    assert time.real(at(12 + 31)) == at(12)
    assert time.real(at(21 + 3631)) == at(21)
