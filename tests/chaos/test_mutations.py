"""Removes the product's safety checks one at a time, and requires the chaos checker to notice.

Each mutation is one change of text, which must match exactly once, in a copy of the product. Without the
lock, everything must still hold, because nothing may depend on it.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos import scenarios
from tests.chaos.deployment import RecordedDeployment
from tests.helpers.mutants import copy_with_change

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

PRODUCT = ("app", "migrations", "deploy", "config.py", "wsgi.py")


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    scenarios: tuple[str, ...]
    breaks: frozenset[str] = frozenset()
    """Rules of which one must be violated, according to the checker or an assertion (`scenario`). If empty,
    everything must hold."""
    rotate: bool = False
    schedulers: int = 0


MUTATIONS = [
    Mutation(
        "compare-and-swap-removed",
        "app/spotify/tokens/grant_row.py",
        """    grants.c.id == sa.bindparam("same_id"),
    grants.c.grant_id == sa.bindparam("same_grant_id"),
    grants.c.generation == sa.bindparam("same_generation"),
""",
        """    grants.c.id == sa.bindparam("same_id"),
    (grants.c.grant_id == sa.bindparam("same_grant_id")) | sa.true(),
    (grants.c.generation == sa.bindparam("same_generation")) | sa.true(),
""",
        ("new_consent_during_refresh",),
        frozenset({"I1", "I2", "I3", "I5"}),
    ),
    Mutation(
        "committed-twice",
        "app/spotify/tokens/completions.py",
        """        completion = Completion(outcome, now, values)
""",
        """        completion = Completion(outcome, now, values)
        if "generation" in values:
            row.generation += 1
            compare_and_swap(db, row, {**values, "generation": row.generation + 1})
""",
        ("twenty_callers",),
        frozenset({"I1", "I2"}),
    ),
    Mutation(
        "row-count-ignored",
        "app/spotify/tokens/grant_row.py",
        "    return updated.rowcount == 1\n",
        "    return True\n",
        ("new_consent_during_refresh", "disconnect_during_refresh"),
        frozenset({"I2"}),
    ),
    Mutation(
        "lock-always-granted",
        "app/resilience/redis_lock.py",
        "if self._client.eval(self._acquire_script, 1, key, token, self._lease_ms):",
        "if True:",
        ("twenty_callers", "many_schedulers", "paused_beyond_lease", "new_consent_during_refresh"),
        schedulers=2,
    ),
    Mutation(
        "lock-never-granted",
        "app/resilience/redis_lock.py",
        "if self._client.eval(self._acquire_script, 1, key, token, self._lease_ms):",
        "if False:",
        ("twenty_callers",),
        schedulers=1,
    ),
    Mutation(
        "batch-not-locked",
        "app/spotify/tokens/refresh_queue.py",
        "        .with_for_update(skip_locked=True)\n",
        "",
        ("many_schedulers", "batch_killed_before_calls"),
        schedulers=2,
    ),
    Mutation(
        "group-commit-gives-up",
        "app/spotify/tokens/refresh_pass.py",
        "            if result not in stored:\n",
        "            if False:\n",
        ("mariadb_killed_during_group_commit",),
        frozenset({"scenario", "I7"}),
        schedulers=1,
    ),
    Mutation(
        "effective-not-recorded",
        "app/spotify/tokens/completions.py",
        "effective = 1 if outcome is Outcome.REFRESHED else None",
        "effective = None",
        ("spotify_errors",),
        frozenset({"I2"}),
    ),
    Mutation(
        "new-refresh-token-forgotten",
        "app/spotify/tokens/results.py",
        "response.refresh_token or presented",
        "presented",
        ("twenty_callers",),
        frozenset({"I3"}),
        rotate=True,
    ),
    Mutation(
        "salvaged-refresh-token-dropped",
        "app/spotify/tokens/results.py",
        "if error.refresh_token in (None, presented):",
        "if True:",
        ("response_without_access_token",),
        frozenset({"scenario"}),
        rotate=True,
    ),
    Mutation(
        "lease-too-short",
        "app/models/access_token.py",
        "LEASE = timedelta(seconds=30)",
        "LEASE = timedelta(seconds=0)",
        ("redis_flushed",) * 20,  # the second caller does not always come in time
        frozenset({"scenario"}),
    ),
    Mutation(
        "lifetime-too-long",
        "app/spotify/tokens/transitions.py",
        '"expires_at": claimed_at + lifetime,',
        '"expires_at": claimed_at + lifetime * 1.1,',
        ("twenty_callers",),
        frozenset({"I6"}),
    ),
    Mutation(
        "sent-with-another-client-id",
        "app/spotify/applications/lookup.py",
        "row for spotify_user_id, row in found if row.client_id == own[spotify_user_id]",
        "row for spotify_user_id, row in found",
        ("applications_restored_alone",),
        frozenset({"I3"}),
    ),
    Mutation(
        "own-grant-with-the-deployments-application",
        "app/spotify/applications/lookup.py",
        "        if grant.client_id is None:\n            return self._require_deployment()\n",
        "        if True:\n            return self._require_deployment()\n",
        ("own_application_broken",),
        frozenset({"I3"}),
        schedulers=1,
    ),
    Mutation(
        "pause-of-an-application-ignored",
        "app/spotify/applications/pauses.py",
        "    if application.state == AppState.ACTIVE:\n        return False\n",
        "    if True:\n        return False\n",
        ("own_application_broken",),
        frozenset({"scenario"}),
        schedulers=1,
    ),
    Mutation(
        "breaker-counts-all-applications",
        "app/spotify/tokens/breaker.py",
        "seen.outcome is rule.outcome and seen.kind is rule.kind",
        "seen.outcome is rule.outcome",
        ("own_application_broken",),
        frozenset({"scenario"}),
        schedulers=1,
    ),
    Mutation(
        "rejections-not-confirmed",
        "app/spotify/tokens/transitions.py",
        "or confirmed >= len(CONFIRM_AFTER)",
        "or confirmed >= 0",
        ("grant_falsely_rejected",),
        frozenset({"I8"}),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_checker_detects_mutation(deployment: RecordedDeployment, tmp_path: Path, mutation: Mutation) -> None:
    project = copy_with_change(tmp_path, PRODUCT, mutation.file, mutation.old, mutation.new)
    deployment.start(project, schedulers=mutation.schedulers)
    found, failures = [], []
    for name in mutation.scenarios:
        report, failure = scenarios.run(
            deployment, name, rotate=mutation.rotate, settle=mutation.schedulers > 0
        )
        found += report.violations
        failures += [f"{name}: {scenarios.where(failure)}"] if failure is not None else []
        rules = {sentence.partition(":")[0] for sentence in found} | ({"scenario"} if failures else set())
        if rules & mutation.breaks:
            return

    if mutation.breaks:
        pytest.fail(f"not detected; violations: {found}, failures: {failures}")
    else:
        assert not found + failures, "\n".join(found + failures)
