"""Versions of rows in Redis: no label that a reader got before a COMMIT is there after it."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from app.infra import row_versions
from app.infra.database import db, writing
from app.infra.redis_client import redis_client
from app.infra.row_versions import Change, RowVersions, announce, is_label, user_version
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.servers import patient

pytestmark = pytest.mark.sqlite_only

KEY = user_version(7)
CHANGE = Change.of(users=[7])


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """The tests' Redis."""
    client = patient(redis_client(redis_url))
    yield client
    client.close()


@pytest.fixture
def versions(store: redis.Redis) -> RowVersions:
    """Versions in it."""
    return RowVersions(store)


def version(store: redis.Redis) -> Any:
    return store.get(KEY)


def test_change_replaces_the_label(store: redis.Redis, versions: RowVersions) -> None:
    store.set(KEY, "old", px=row_versions.LABEL_SECONDS * 1000)

    versions.begin(CHANGE)
    marked = version(store)
    marked_ms = store.pttl(KEY)
    versions.end(CHANGE)

    assert not is_label(marked)
    assert 0 < marked_ms <= row_versions.MARKER_SECONDS * 1000
    assert is_label(version(store))
    assert version(store) != b"old"
    assert row_versions.MARKER_SECONDS * 1000 < store.pttl(KEY) <= row_versions.LABEL_SECONDS * 1000


def test_change_of_a_row_that_no_process_remembers_leaves_nothing_behind(
    store: redis.Redis, versions: RowVersions
) -> None:
    versions.begin(CHANGE)
    assert not is_label(version(store))

    versions.end(CHANGE)

    assert version(store) is None


def test_version_is_marked_until_the_last_of_several_writers_is_done(
    store: redis.Redis, versions: RowVersions
) -> None:
    for ending in permutations(range(3)):
        store.set(KEY, "old")
        changes = [Change.of(users=[7]) for _ in range(3)]
        for change in changes:
            versions.begin(change)

        for writer in ending[:-1]:
            versions.end(changes[writer])
            assert not is_label(version(store))
        versions.end(changes[ending[-1]])

        assert is_label(version(store))
        assert version(store) != b"old"


def test_label_that_a_reader_made_after_the_marker_was_lost_is_replaced(
    store: redis.Redis, versions: RowVersions
) -> None:
    versions.begin(CHANGE)
    store.set(KEY, "made-before-the-commit")

    versions.end(CHANGE)

    assert is_label(version(store))
    assert version(store) != b"made-before-the-commit"


def test_marker_of_a_dead_writer_stays_until_it_expires(store: redis.Redis, versions: RowVersions) -> None:
    dead, alive = Change.of(users=[7]), Change.of(users=[7])
    versions.begin(dead)
    versions.begin(alive)

    versions.end(alive)

    assert not is_label(version(store))
    assert 0 < store.pttl(KEY) <= row_versions.MARKER_SECONDS * 1000


def test_ending_twice_is_harmless(store: redis.Redis, versions: RowVersions) -> None:
    store.set(KEY, "old")
    versions.begin(CHANGE)
    versions.end(CHANGE)
    first = version(store)

    versions.end(CHANGE)

    assert is_label(version(store))
    assert first != b"old"


@pytest.mark.parametrize("value", [None, b"", b"!token", b"label!token"])
def test_only_labels_are_labels(value: bytes | None) -> None:
    assert not is_label(value)
    assert is_label(row_versions.new_label().encode())


def test_change_of_several_rows_begins_and_ends(store: redis.Redis, versions: RowVersions) -> None:
    change = Change.of(users=[7], connections=[8, 9])
    for key in change.keys:
        store.set(key, "old")

    for write, is_marked in ((versions.begin, True), (versions.end, False)):
        write(change)
        found: Any = [store.get(key) for key in change.keys]
        assert all((b"!" in value) == is_marked and value != b"old" for value in found)


# --- transactions --------------------------------------------------------------------------------


def commit(app: Flask, committed: list[str], **announced: Any) -> None:
    """Commit a transaction that announces a change, and note that the COMMIT was sent."""

    def note(_connection: object) -> None:
        committed.append("yes")

    with app.app_context():
        event.listen(db.engine, "commit", note)
        try:
            with writing() as session:
                announce(session, **announced)
                session.execute(sa.select(1))
        finally:
            event.remove(db.engine, "commit", note)


def test_transaction_marks_the_version_before_its_commit_and_replaces_the_label_after_it(
    app: Flask, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set(KEY, "old")
    seen: list[Any] = []
    versions = app.extensions["row_versions"]
    end = versions.end

    def end_later(change: Change) -> None:
        seen.append(version(store))
        end(change)

    monkeypatch.setattr(versions, "end", end_later)
    commit(app, [], users=[7])

    assert [is_label(value) for value in seen] == [False]
    assert is_label(version(store))
    assert version(store) != b"old"


def test_transaction_that_is_rolled_back_changes_no_version(app: Flask, store: redis.Redis) -> None:
    store.set(KEY, "old")

    def work() -> None:
        with app.app_context(), writing() as session:
            announce(session, users=[7])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()

    assert version(store) == b"old"


def test_savepoint_is_not_taken_for_the_commit(app: Flask, store: redis.Redis) -> None:
    store.set(KEY, "old")

    with app.app_context(), writing() as session:
        announce(session, users=[7])
        with session.begin_nested():
            pass
        assert version(store) == b"old"

    assert version(store) != b"old"


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_transaction_is_not_committed_if_its_version_cannot_be_marked(app: Flask) -> None:
    committed: list[str] = []

    with pytest.raises(redis.RedisError):
        commit(app, committed, users=[7])

    assert committed == []


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_change_that_no_person_waits_for_is_committed_without_redis(app: Flask) -> None:
    committed: list[str] = []

    commit(app, committed, users=[7], best_effort=True)

    assert committed == ["yes"]


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_one_change_that_a_person_waits_for_decides(app: Flask) -> None:
    def work() -> None:
        with app.app_context(), writing() as session:
            announce(session, users=[7])
            announce(session, users=[7], connections=[8], best_effort=True)

    with pytest.raises(redis.RedisError):
        work()


def test_failed_commit_leaves_the_marker(app: Flask, store: redis.Redis) -> None:
    """It may have taken effect, perhaps later than the error."""
    store.set(KEY, "old")

    def fail(connection: object) -> None:
        raise OperationalError("COMMIT", None, Exception("connection lost"))

    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
        event.listen(engine, "commit", fail)
        try:
            with pytest.raises(OperationalError):
                commit(app, [], users=[7])
        finally:
            event.remove(engine, "commit", fail)

    assert not is_label(version(store))


def test_redis_that_fails_after_the_commit_leaves_the_marker_and_no_error(
    app: Flask, redis_proxy: FaultProxy, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set(KEY, "old")
    versions = app.extensions["row_versions"]
    end = versions.end

    def end_without_redis(change: Change) -> None:
        redis_proxy.refuse()
        end(change)

    monkeypatch.setattr(versions, "end", end_without_redis)
    commit(app, [], users=[7])

    assert not is_label(version(store))
