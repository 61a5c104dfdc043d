"""Removes safety checks of the device authorization grant, one at a time: tests must fail.

Each mutation is one change of text, which must match exactly once, in a copy of the project.
"""

import pytest

from tests.helpers.mutants import Mutation, assert_noticed

pytestmark = pytest.mark.processes

STORE, FLOW = "app/auth/devices/store.py", "app/auth/devices/flow.py"
TESTS = "tests/auth/devices/test_flow.py"

MUTATIONS = [
    Mutation(
        "anyone-may-decide",  # CVE-2026-45337
        STORE,
        "if found is not None and found.record.user_id is None:",
        "if False:",
        f"{TESTS}::test_only_the_first_person_who_looks_a_code_up_may_decide",
    ),
    Mutation(
        "everyone-wins",
        STORE,
        "return compare_and_set(self._client, old.key, self._encrypt(old), self._encrypt(new))",
        "return bool(self._client.set(old.key, self._encrypt(new), keepttl=True))",
        f"{TESTS}::test_person_who_looks_a_code_up_at_the_same_time_as_another_does_not_share_it",
    ),
    Mutation(
        "code-not-used-up",
        FLOW,
        'if not self._store.replace(approved, status="redeemed"):',
        "if False:",
        f"{TESTS}::test_token_is_issued_once",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_noticed(mutation: Mutation) -> None:
    assert_noticed(mutation)
