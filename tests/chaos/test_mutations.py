"""What the proof is worth: with a safety line taken out of the product, the checker must notice.

Each mutation is one change of text, which has to fit exactly once, in a copy of the product. Taking
out the lock is no such thing: nothing may depend on it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos import scenarios
from tests.chaos.world import World
from tests.helpers.servers import ROOT

pytestmark = pytest.mark.processes

PRODUCT = ("app", "migrations", "deploy", "config.py", "settings", "wsgi.py")


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    scenarios: tuple[str, ...]
    breaks: frozenset[str] = frozenset()
    """The rules, one of which must be found broken: by the checker, or by the drill itself where it is
    stricter. None: everything has to be as promised."""
    rotate: bool = False
    schedulers: int = 0


MUTATIONS = [
    Mutation(
        "compare-and-swap-removed",
        "app/spotify/tokens/attempts.py",
        """            AccessToken.id == row.id,
            AccessToken.grant_id == row.grant_id,
            AccessToken.generation == row.generation,
            *conditions,
""",
        """            AccessToken.id == row.id,
            *conditions,
""",
        ("linked_anew_while_refreshing",),
        frozenset({"I1", "I2", "I3", "I5"}),
    ),
    Mutation(
        "committed-twice",
        "app/spotify/tokens/attempts.py",
        """            completion = Completion(outcome, now, values)
""",
        """            completion = Completion(outcome, now, values)
            if "generation" in values:
                row.generation += 1
                update(db, row, {**values, "generation": row.generation + 1})
""",
        ("twenty_callers",),
        frozenset({"I1", "I2"}),
    ),
    Mutation(
        "row-count-ignored",
        "app/spotify/tokens/attempts.py",
        "    return updated.rowcount == 1  #",
        "    return True  #",
        ("linked_anew_while_refreshing", "disconnected_while_refreshing"),
        frozenset({"I2"}),
    ),
    Mutation(
        "lock-always-granted",
        "app/resilience/redis_lock.py",
        "if self._acquire_script([key], [token, self._lease_ms]):",
        "if True:",
        ("twenty_callers", "many_schedulers", "paused_beyond_its_lease", "linked_anew_while_refreshing"),
        schedulers=3,
    ),
    Mutation(
        "lock-never-granted",
        "app/resilience/redis_lock.py",
        "if self._acquire_script([key], [token, self._lease_ms]):",
        "if False:",
        ("twenty_callers",),
        schedulers=1,
    ),
    Mutation(
        "no-proof-kept",
        "app/spotify/tokens/attempts.py",
        "effective = 1 if completion.outcome is Outcome.REFRESHED else None",
        "effective = None",
        ("spotify_is_unwell",),
        frozenset({"I2"}),
    ),
    Mutation(
        "new-refresh-token-forgotten",
        "app/spotify/tokens/refresh.py",
        "response.refresh_token or presented",
        "presented",
        ("twenty_callers",),
        frozenset({"I3"}),
        rotate=True,
    ),
    Mutation(
        "salvaged-refresh-token-dropped",
        "app/spotify/tokens/refresh.py",
        "if error.refresh_token in (None, presented):",
        "if True:",
        ("answered_without_an_access_token",),
        frozenset({"drill"}),
        rotate=True,
    ),
    Mutation(
        "lease-too-short",
        "app/models/access_token.py",
        "LEASE = timedelta(seconds=30)",
        "LEASE = timedelta(seconds=0)",
        ("redis_flushed",) * 4,  # whether the second caller comes in time is chance
        frozenset({"drill"}),
    ),
    Mutation(
        "life-reckoned-too-long",
        "app/spotify/tokens/transitions.py",
        '"expires_at": claimed_at + lifetime,',
        '"expires_at": claimed_at + lifetime * 1.1,',
        ("twenty_callers",),
        frozenset({"I6"}),
    ),
    Mutation(
        "refusals-believed-at-once",
        "app/spotify/tokens/transitions.py",
        "or confirmed >= len(CONFIRM_AFTER)",
        "or confirmed >= 0",
        ("revoked_by_mistake",),
        frozenset({"I8"}),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_checker_detects_mutation(world: World, tmp_path: Path, mutation: Mutation) -> None:
    world.run_product(mutant(mutation, tmp_path), schedulers=mutation.schedulers)
    found, failures = [], []
    for name in mutation.scenarios:
        report, failure = scenarios.run(world, name, rotate=mutation.rotate, settle=mutation.schedulers > 0)
        found += report.violations
        failures += [f"{name}: {scenarios.where(failure)}"] if failure is not None else []

    rules = {sentence.partition(":")[0] for sentence in found} | ({"drill"} if failures else set())
    if mutation.breaks:
        assert rules & mutation.breaks, f"not noticed; violations: {found}, failures: {failures}"
    else:
        assert not found + failures, "\n".join(found + failures)


def mutant(mutation: Mutation, directory: Path) -> Path:
    """A copy of the product with the mutation in it."""
    for name in PRODUCT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    file = directory / mutation.file
    text = file.read_text(encoding="utf-8")
    count = text.count(mutation.old)
    assert count == 1, (
        f"{mutation.file} has the text to change {count} times: bring {mutation.name} up to date"
    )
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return directory
