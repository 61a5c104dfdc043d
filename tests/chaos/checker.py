"""Assert what must hold over a history of grants, refresh attempts, and calls to the token endpoint.

I1  The generations of a grant are 0, 1, 2, ... without gaps or repeats.
I2  A generation has one effective refresh.
I3  A stored refresh token was issued for a call that presented the previous generation's, or is unchanged.
    It is presented with the client id that it was issued to.
I4  A generation costs one call, and at most one more for each fault.
I5  Nothing is written to a grant after a disconnect or a new consent.
I6  A stored access token is accepted until its stored expiry.
I7  After the last fault, every live grant becomes fresh in time.
I8  No connection is marked as ended unless its grant was really revoked.

Each violation is a sentence that names the connection, the grant, the generation, and the attempt or call.
An empty list means that everything holds.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.chaos.history import ROUNDING, UNREADABLE, Attempt, Call, Change, History

REFRESHED = "refreshed"
SUSPECT = "suspect"
OVER = "reauthorization_required"
# A rejected grant costs one call, and two more to confirm the rejection.
REJECTIONS = 3
# These only delay a call. It takes effect, and gets a response.
HARMLESS = ("park", "slow")
THE_END = datetime.max.replace(tzinfo=UTC)


@dataclass
class Generation:
    """One generation of a grant, from its first change to its end."""

    spotify_user_id: int
    grant: str
    number: int
    began: Change
    ended: datetime | None = None
    held: set[str] = field(default_factory=set)
    last: Change = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.began
        self.see(self.began)

    def see(self, change: Change) -> None:
        """Add a change that does not start another generation."""
        self.last = change
        self.held |= {token for token in (change.refresh, change.spare) if token not in (None, UNREADABLE)}

    @property
    def key(self) -> tuple[int, str, int]:
        return self.spotify_user_id, self.grant, self.number

    def __str__(self) -> str:
        return _describe(self.spotify_user_id, self.grant, self.number)


@dataclass
class Report:
    """The violations, and numbers for the summary."""

    violations: list[str]
    refreshes: int
    calls: int
    destroyed_by_provider: list[str]
    calls_per_generation: Counter[int]


def check(history: History) -> Report:
    """Check all rules, and report all violations."""
    checker = _Checker(history)
    violations = checker.run()
    return Report(
        violations,
        refreshes=checker.refreshes,
        calls=len(history.calls),
        destroyed_by_provider=checker.destroyed,
        calls_per_generation=Counter(len(calls) for calls in checker.calls_of.values() if calls),
    )


class _Checker:
    def __init__(self, history: History) -> None:
        self._history = history
        self.violations: list[str] = []
        self.destroyed: list[str] = []
        self.refreshes = 0
        self.generations: dict[tuple[int, str, int], Generation] = {}
        self.calls_of: dict[tuple[int, str, int], list[Call]] = {}
        self._attempts: dict[tuple[int, str, int], list[Attempt]] = defaultdict(list)
        for attempt in history.attempts:
            self._attempts[attempt.spotify_user_id, attempt.grant, attempt.generation].append(attempt)
        self._call_that_issued = {call.issued_access: call for call in history.calls if call.issued_access}
        self._spent: dict[int, Generation] = {}

    def run(self) -> list[str]:
        self._check_changes()
        self._check_effective_attempts()
        self._match_calls()
        self._check_number_of_calls()
        self._check_valid_grants()
        self._check_returned_tokens()
        self.violations += [f"I7: {sentence}" for sentence in self._history.stale]
        return self.violations

    def _violated(self, rule: str, where: object, what: str) -> None:
        self.violations.append(f"{rule}: {where}: {what}.")

    # Changes of rows: I1, I3, I5, I6, I8.

    def _check_changes(self) -> None:
        current: dict[int, Generation] = {}
        ended_grants: set[tuple[int, str]] = set()
        for change in self._history.changes:
            generation = current.get(change.spotify_user_id)
            if change.kind == "delete":
                if generation is not None:
                    self._close(current.pop(change.spotify_user_id), change, ended_grants)
                continue
            if (change.spotify_user_id, change.grant) in ended_grants:
                self._violated(
                    "I5",
                    f"connection {change.spotify_user_id}, grant {change.grant[:8]}",
                    "it was written to after its end",
                )
                continue
            self._check_decryption(change)
            if generation is None or generation.grant != change.grant:
                if generation is not None:
                    self._close(generation, change, ended_grants)
                current[change.spotify_user_id] = self._begin_grant(change)
            elif change.generation != generation.number:
                current[change.spotify_user_id] = self._follow_refresh(generation, change)
            else:
                self._check_same_generation(generation, change)
                generation.see(change)

    def _close(self, generation: Generation, change: Change, ended_grants: set[tuple[int, str]]) -> None:
        generation.ended = change.at
        ended_grants.add((generation.spotify_user_id, generation.grant))

    def _check_decryption(self, change: Change) -> None:
        for column, token in zip(("access_token", "refresh_token", "spare"), change.tokens, strict=True):
            where = _describe(change.spotify_user_id, change.grant, change.generation)
            if token == UNREADABLE:
                self._violated("I5", where, f"its {column} was not encrypted for this connection and grant")
            if token is None and column != "spare" and change.state != OVER:
                self._violated("I3", where, f"its {column} was deleted")

    def _begin_grant(self, change: Change) -> Generation:
        generation = self._begin(change)
        if change.generation != 0:
            self._violated("I1", generation, "a new grant begins at generation 0")
        self._check_expiry(generation, change.at - timedelta(seconds=30))
        return generation

    def _begin(self, change: Change) -> Generation:
        generation = Generation(change.spotify_user_id, change.grant, change.generation, change)
        if generation.key in self.generations:
            self._violated("I1", generation, "it began a second time")
        self.generations[generation.key] = generation
        return generation

    def _follow_refresh(self, before: Generation, change: Change) -> Generation:
        before.ended = change.at
        after = self._begin(change)
        self.refreshes += 1
        if after.number != before.number + 1:
            self._violated("I1", after, f"it came after generation {before.number}")
        self._check_origin(before, change, after)
        began = min((attempt.began for attempt in self._attempts[before.key]), default=change.at)
        self._check_expiry(after, began)
        return after

    def _check_origin(self, before: Generation, change: Change, after: Generation) -> None:
        """I3: what is stored was issued for one call, made with a token of the previous generation."""
        if UNREADABLE in change.tokens:
            return
        call = self._call_that_issued.get(change.access or "")
        if call is None:
            self._violated("I3", after, f"its access token {change.access} was not issued for a refresh")
            return
        if call.presented not in before.held:
            self._violated(
                "I3",
                after,
                f"call {call.n} presented {call.presented}, which generation {before.number} never held",
            )
        if (other := self._spent.setdefault(call.n, after)) is not after:
            self._violated(
                "I3", after, f"the response to call {call.n} was already stored as generation {other.number}"
            )
        if call.issued_refresh is not None and change.refresh != call.issued_refresh:
            self._violated(
                "I3",
                after,
                f"call {call.n} gave the refresh token {call.issued_refresh}, but {change.refresh} is stored",
            )
        elif call.issued_refresh is None and change.refresh not in before.held:
            self._violated("I3", after, f"its refresh token {change.refresh} is unknown")

    def _check_same_generation(self, generation: Generation, change: Change) -> None:
        """I3: without a refresh, no token changes, except that a spare may be stored, and replace the token.

        So may a refresh token that came without an access token, in the response to one of its calls.
        """
        before = generation.last
        erased = change.access is None or change.refresh is None
        if not erased and UNREADABLE not in change.tokens:
            if change.access != before.access:
                self._violated("I3", generation, "its access token changed without a refresh")
            issued = {call.issued_refresh for call in self._history.calls if call.presented == before.refresh}
            if change.refresh not in {before.refresh, before.spare, *issued}:
                self._violated("I3", generation, "its refresh token changed without a refresh")
            if change.spare is not None and change.spare not in self._known_spares(generation):
                self._violated("I3", generation, f"its spare token {change.spare} is unknown")
        if change.state != before.state:
            self._check_new_state(generation, change)

    def _known_spares(self, generation: Generation) -> set[str | None]:
        """Return the tokens that may be stored as a spare: those issued for a call of this grant."""
        held = {
            token
            for (spotify_user_id, grant, _), other in self.generations.items()
            if (spotify_user_id, grant) == (generation.spotify_user_id, generation.grant)
            for token in other.held
        }
        return {call.issued_refresh for call in self._history.calls if call.presented in held} | held

    def _check_new_state(self, generation: Generation, change: Change) -> None:
        """I8: only a rejection makes a grant suspect, and only its real end ends it."""
        if change.state == SUSPECT and not self._was_rejected(generation, change.at):
            self._violated("I8", generation, "it became suspect, but Spotify never rejected its token")
        if change.state != OVER:
            return
        tokens = [self._history.refresh_tokens.get(token) for token in generation.held]
        if any(token is not None and token.live for token in tokens):
            self._violated("I8", generation, "it was ended, but its refresh token is valid")
        elif not self._was_revoked(generation.spotify_user_id, change.at):
            if generation.last.state != SUSPECT:
                self._violated("I8", generation, "it was ended without having been suspect")
            self._count_as_destroyed(generation)

    def _check_valid_grants(self) -> None:
        """I8: a grant that has not ended has a valid token, unless it is revoked or destroyed."""
        for generation in self.generations.values():
            tokens = [self._history.refresh_tokens.get(token) for token in generation.held]
            dead = bool(tokens) and not any(token is not None and token.live for token in tokens)
            current = generation.ended is None and generation.last.state != OVER
            if current and dead and not self._was_revoked(generation.spotify_user_id, THE_END):
                self._count_as_destroyed(generation)

    def _was_rejected(self, generation: Generation, before: datetime) -> bool:
        return any(
            call.status == 400 and call.presented in generation.held and call.at <= before + ROUNDING
            for call in self._history.calls
        )

    def _was_revoked(self, spotify_user_id: int, before: datetime) -> bool:
        revoked = [fault for fault in self._history.faults if fault.kind in ("revoked", "aged")]
        return any(
            fault.began <= before
            and (fault.spotify_user_ids is None or spotify_user_id in fault.spotify_user_ids)
            for fault in revoked
        )

    def _count_as_destroyed(self, generation: Generation) -> None:
        """Count a grant whose token a rotating provider replaced in a response that was lost."""
        if not self._excuses(generation):
            self._violated("I8", generation, "its refresh token was lost, though nothing had been broken")
        self.destroyed.append(str(generation))

    def _check_expiry(self, generation: Generation, began: datetime) -> None:
        """I6: the sandbox accepts the access token until the expiry that is stored with it.

        Advancing time makes an earlier expiry too late by the same amount, which is not a violation.
        """
        change = generation.began
        issued = self._history.access_tokens.get(change.access or "")
        if change.access in (None, UNREADABLE):
            return
        if issued is None or issued.expires_at is None:
            self._violated("I6", generation, f"the sandbox knows no access token {change.access}")
            return
        believed = change.expires_at - change.at
        really = issued.expires_at - (change.at + self._history.offset_at(change.at))
        forgiven = self._history.shifted_between(began, change.at) + ROUNDING
        if believed > really + forgiven:
            late = (believed - really).total_seconds()
            self._violated("I6", generation, f"its access token ends {late:.1f} s before its stored expiry")

    # Attempts and calls: I2, I4.

    def _check_effective_attempts(self) -> None:
        for attempt in self._history.attempts:
            if attempt.effective != (attempt.outcome == REFRESHED):
                self._violated(
                    "I2", f"connection {attempt.spotify_user_id}, {attempt}", "effective and outcome disagree"
                )
        effective = Counter(
            a for key, group in self._attempts.items() for a in [key] * sum(x.effective for x in group)
        )
        followed = {
            g.key
            for g in self.generations.values()
            if (g.spotify_user_id, g.grant, g.number + 1) in self.generations
        }
        for key in sorted(effective.keys() | followed):
            spotify_user_id, grant, number = key
            where = f"connection {spotify_user_id}, grant {grant[:8]}, generation {number}"
            attempts = ", ".join(str(attempt) for attempt in self._attempts[key]) or "no attempt"
            if key not in followed:
                self._violated(
                    "I2", where, f"the history says that it was refreshed, but the row never was ({attempts})"
                )
            elif effective[key] != 1:
                self._violated(
                    "I2", where, f"it was refreshed with {effective[key]} effective attempts ({attempts})"
                )

    def _match_calls(self) -> None:
        """I4: every call belongs to a running attempt, and no attempt makes two calls.

        A call that could belong to several attempts counts for the newest.
        """
        self.calls_of = {key: [] for key in self.generations}
        holders: dict[str, list[Generation]] = defaultdict(list)
        for generation in self.generations.values():
            for token in generation.held:
                holders[token].append(generation)
        used: set[str] = set()
        for call in self._history.calls:
            self._check_client_id(call)
            candidates = [
                attempt
                for generation in holders.get(call.presented or "", [])
                for attempt in self._attempts[generation.key]
                if attempt.attempt_id not in used and _is_running(attempt, call.at)
            ]
            if not candidates:
                spotify_user_ids = sorted(
                    {generation.spotify_user_id for generation in holders.get(call.presented or "", [])}
                )
                self._violated(
                    "I4",
                    f"connections {spotify_user_ids}",
                    f"call {call.n} presented {call.presented}, but no attempt was free for it",
                )
                continue
            attempt = max(candidates, key=lambda one: one.began)
            used.add(attempt.attempt_id)
            self.calls_of.setdefault((attempt.spotify_user_id, attempt.grant, attempt.generation), []).append(
                call
            )

    def _check_client_id(self, call: Call) -> None:
        """I3: a refresh token is presented with the client id that it was issued to."""
        issued = self._history.refresh_tokens.get(call.presented or "")
        if issued is not None and issued.client_id != call.client_id:
            self._violated("I3", f"call {call.n}", f"it presented {call.presented} as {call.client_id}")

    def _check_number_of_calls(self) -> None:
        """I4: one call for each generation, and at most one more for each fault."""
        for key, calls in self.calls_of.items():
            if len(calls) <= 1 or key not in self.generations:
                continue
            generation = self.generations[key]
            excuses = self._excuses(generation)
            if len(calls) > 1 + len(excuses):
                numbers = ", ".join(str(call.n) for call in calls)
                self._violated(
                    "I4",
                    generation,
                    f"{len(calls)} calls presented its token ({numbers}), with faults: {excuses or 'none'}",
                )

    def _excuses(self, generation: Generation) -> list[str]:
        """Return the reasons that allow one more call each for this generation."""
        faults = self._history.faults_on(generation.spotify_user_id, generation.began.at, generation.ended)
        calls = self.calls_of.get(generation.key) or [
            call for call in self._history.calls if call.presented in generation.held
        ]
        excuses = [fault.kind for fault in faults]
        excuses += [call.fault for call in calls if call.fault is not None and call.fault not in HARMLESS]
        excuses += ["time passed" for _ in self._overtaken(generation)]
        # Rejections are confirmed before a grant ends.
        if excuses and any(call.status == 400 and call.fault in (None, *HARMLESS) for call in calls):
            excuses += ["rejected"] * REJECTIONS
        return excuses

    def _overtaken(self, generation: Generation) -> Iterator[Attempt]:
        """Yield the attempts whose lease may have expired because time was advanced during them."""
        for attempt in self._attempts[generation.key]:
            end = attempt.ended or generation.ended or THE_END
            if self._history.shifted_between(attempt.began, end) > timedelta(seconds=20):
                yield attempt

    def _check_returned_tokens(self) -> None:
        """I6: clients got only valid tokens of their own."""
        for returned in self._history.returned:
            issued = self._history.access_tokens.get(returned.token)
            where = f"the token {returned.token} returned to {returned.person}"
            if issued is None:
                self._violated("I6", where, "the sandbox never issued it")
            elif issued.person != returned.person:
                self._violated("I5", where, f"it is {issued.person}'s")


def _describe(spotify_user_id: int, grant: str, generation: int) -> str:
    return f"connection {spotify_user_id}, grant {grant[:8]}, generation {generation}"


def _is_running(attempt: Attempt, moment: datetime) -> bool:
    return attempt.began - ROUNDING <= moment and (
        attempt.ended is None or moment <= attempt.ended + ROUNDING
    )
