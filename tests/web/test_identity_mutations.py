"""Removes the steps that keep remembered rows from being stale, one at a time: tests must fail.

Each mutation is one change of text, which must match exactly once, in a copy of the project.
"""

import pytest

from tests.helpers.mutants import Mutation, assert_noticed

pytestmark = pytest.mark.processes

BEARER, TOKENS = "tests/web/test_bearer.py", "tests/user/test_tokens.py"
IDENTITY, VERSIONS = "tests/web/test_identity.py", "tests/infra/test_row_versions.py"


MUTATIONS = [
    Mutation(
        "label-not-compared",
        "app/web/snapshot_cache.py",
        "label is not None and values.get(key) == label for",
        "label is not None for",
        f"{IDENTITY}::test_change_in_one_process_is_seen_in_another_at_once",
    ),
    Mutation(
        "unlabeled-row-remembered",
        "app/web/snapshot_cache.py",
        "label is not None and values.get(key) == label for",
        "values.get(key) == label for",
        f"{IDENTITY}::test_snapshot_is_confirmed_by_all_of_its_labels",
    ),
    Mutation(
        "row-read-before-label",
        "app/web/snapshot_cache.py",
        "        snapshot = _read_rows(subject)\n",
        "        snapshot = _read_rows(subject)\n        versions = self._create_labels(keys)\n",
        f"{IDENTITY}::test_label_is_read_before_the_row",
    ),
    Mutation(
        "marker-taken-for-a-label",
        "app/infra/row_versions.py",
        'return bool(version) and _MARKER not in (version or b"")',
        "return bool(version)",
        f"{IDENTITY}::test_row_that_is_being_changed_is_read_and_not_remembered",
    ),
    Mutation(
        "label-of-another-server-trusted",
        "app/web/snapshot_cache.py",
        "if self.connected_at > remembered.labeled_at:",
        "if False:",
        f"{IDENTITY}::test_label_from_before_a_restart_of_redis_is_not_trusted",
    ),
    Mutation(
        "remembered-for-good",
        "app/infra/expiring_cache.py",
        "if entry is None or time.monotonic() - entry[0] >= self._seconds:",
        "if entry is None:",
        f"{IDENTITY}::test_nothing_is_remembered_for_longer_than_a_minute",
    ),
    Mutation(
        "session-remembered",
        "app/web/sessions/interface.py",
        "        if raw is None:\n            self._decoded.remove",
        "        raw = raw or (self._decoded.get(requested.key) or (None,))[0]\n"
        "        if raw is None:\n            self._decoded.remove",
        f"{IDENTITY}::test_session_is_never_remembered",
    ),
    Mutation(
        "change-not-announced",
        "app/auth/lookup.py",
        "    announce(db, users=[row.id])\n",
        "",
        f"{IDENTITY}::test_change_in_one_process_is_seen_in_another_at_once",
    ),
    Mutation(
        "marked-after-the-commit",
        "app/infra/row_versions.py",
        'event.listen(Session, "before_commit", _begin)',
        'event.listen(Session, "after_commit", _begin)',
        f"{VERSIONS}::test_transaction_is_not_committed_if_its_version_cannot_be_marked",
    ),
    Mutation(
        "label-replaced-before-the-commit",
        "app/infra/row_versions.py",
        'event.listen(Session, "after_commit", _end)',
        'event.listen(Session, "before_commit", _end)',
        f"{VERSIONS}::test_failed_commit_leaves_the_marker",
    ),
    Mutation(
        "failed-marker-ignored",
        "app/infra/row_versions.py",
        "        if any(keys.values()):\n            raise\n",
        "",
        f"{VERSIONS}::test_transaction_is_not_committed_if_its_version_cannot_be_marked",
    ),
    Mutation(
        "label-kept",
        "app/infra/row_versions_end.lua",
        "redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])",
        "redis.call('SET', KEYS[1], version, 'PX', ARGV[3])",
        f"{VERSIONS}::test_change_replaces_the_label",
    ),
    Mutation(
        "only-own-marker-replaced",
        "app/infra/row_versions_end.lua",
        "if first then version =",
        "if not first then return end\nif first then version =",
        f"{VERSIONS}::test_label_that_a_reader_made_after_the_marker_was_lost_is_replaced",
    ),
    Mutation(
        "token-of-another-epoch-accepted",
        "app/models/snapshots.py",
        "if self.session_epoch != owner.session_epoch or owner.disabled:",
        "if owner.disabled:",
        f"{BEARER}::test_each_of_three_things_ends_a_token",
    ),
    Mutation(
        "revocation-not-announced",
        "app/auth/personal_access_tokens.py",
        "        announce(db, users=[user_id])\n        deleted",
        "        deleted",
        f"{BEARER}::test_revoked_token_is_rejected_at_once_by_every_worker",
    ),
    Mutation(
        "rules-about-other-sites-skipped-for-any-authorization",
        "app/web/csrf.py",
        "if bearer.replaces_cookie(current):",
        'if "HTTP_AUTHORIZATION" in current.environ:',
        f"{BEARER}::test_other_schemes_are_ignored",
    ),
    Mutation(
        "cookie-used-beside-a-malformed-token",
        "app/web/bearer.py",
        'return value.strip(" ") if scheme.lower() == "bearer" else None',
        'return value.strip(" ") if scheme.lower() == "bearer" and is_well_formed(value) else None',
        f"{BEARER}::test_every_route_with_a_token_that_is_not_valid",
    ),
    Mutation(
        "rights-not-checked-by-the-gateway",
        "app/spotify/routes.py",
        "        require_right()\n",
        "",
        f"{BEARER}::test_every_route_with_a_token_that_has_one_right",
    ),
    Mutation(
        "token-created-by-an-ended-session",
        "app/models/user.py",
        " or user.session_epoch != session_epoch:",
        ":",
        f"{TOKENS}::test_session_that_has_ended_creates_no_token",
    ),
    Mutation(
        "marker-of-another-writer-removed",
        "app/infra/row_versions_end.lua",
        "if string.find(version, '!', 1, true) then",
        "if false then",
        f"{VERSIONS}::test_version_is_marked_until_the_last_of_several_writers_is_done",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_noticed(mutation: Mutation) -> None:
    assert_noticed(mutation)
