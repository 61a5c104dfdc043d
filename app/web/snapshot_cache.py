"""The rows that a process remembers, and whether they are still what the database has.

docs/decisions/0060-row-versions.md explains the protocol. The label of a version is always read before the
row that is remembered with it.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis
import sqlalchemy as sa
from prometheus_client import Counter

from app.infra import database
from app.infra.expiring_cache import ExpiringCache
from app.infra.metrics import best_effort
from app.infra.redis_round_trip import Command, Replies, round_trip
from app.infra.row_versions import LABEL_SECONDS, connection_version, is_label, new_label, user_version
from app.models import snapshots
from app.models.snapshots import Snapshot

log = logging.getLogger(__name__)

# The bound for what no protocol can cover, such as rows that are edited by hand.
MAX_AGE_SECONDS = 60.0
MAX_SNAPSHOTS = 4096

# Hits are all other requests with a session or a token. Counting them would take longer than they do.
_MISSES = Counter(
    "backline_snapshot_misses", "How often the rows of a request's account and connection had to be read."
)

Key = tuple[str, int | str | None]


class Subject(NamedTuple):
    """The account that a session is signed in to, or else the connection that its visitor uses."""

    user_id: int | None
    spotify_user_id: int | None  # if signed in: the connection that the account probably has

    @property
    def key(self) -> Key:
        """The key by which its snapshot is remembered."""
        return ("user", self.user_id) if self.user_id is not None else ("connection", self.spotify_user_id)

    @property
    def versions(self) -> list[str]:
        """The keys of the versions that its snapshot probably depends on."""
        return _version_keys(self.user_id, self.spotify_user_id)

    @property
    def statement(self) -> sa.Select[Any] | None:
        """The statement that reads its snapshot."""
        if self.user_id is not None:
            return snapshots.OF_USER.params(id=self.user_id)
        if self.spotify_user_id is not None:
            return snapshots.OF_CONNECTION.params(id=self.spotify_user_id)
        return None


class TokenSubject(NamedTuple):
    """The account that a personal access token belongs to."""

    token_hash: str

    @property
    def key(self) -> Key:
        """The key by which its snapshot is remembered."""
        return "token", self.token_hash

    @property
    def versions(self) -> list[str]:
        """None: whose versions its snapshot depends on is known once it has been read."""
        return []

    @property
    def statement(self) -> sa.Select[Any]:
        """The statement that reads its snapshot."""
        return snapshots.OF_PERSONAL_TOKEN.params(token_hash=self.token_hash)


@dataclass(frozen=True, slots=True)
class Remembered:
    """A snapshot, and the labels that its versions had before it was read, at `labeled_at` (monotonic).

    If one had no label, the snapshot can never be confirmed. It only shows which versions to read next time.
    """

    snapshot: Snapshot
    labels: Mapping[str, bytes | None]
    labeled_at: float


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions as one round trip has read them, at `read_at` (monotonic) at the earliest."""

    values: Mapping[str, Any] = field(default_factory=dict)
    read_at: float = 0.0
    connected_at: float = 0.0

    def confirm(self, remembered: Remembered) -> bool:
        """Return whether a snapshot is still valid.

        It is not if the connection to Redis was opened after the labels were read: it may lead to another
        server, with labels from before a change.
        """
        if self.connected_at > remembered.labeled_at:
            return False
        values = self.values
        return all(label is not None and values.get(key) == label for key, label in remembered.labels.items())

    def label(self, key: str) -> bytes | None:
        """Return the label of a version, or None if it has none now."""
        value = self.values.get(key)
        return value if isinstance(value, bytes) and is_label(value) else None

    def lacks(self, keys: Iterable[str]) -> bool:
        """Return whether one of these versions was not read, or does not exist."""
        return any(self.values.get(key) is None for key in keys)


class SnapshotCache:
    """Snapshots by subject."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._entries: ExpiringCache[Key, Remembered] = ExpiringCache(MAX_SNAPSHOTS, MAX_AGE_SECONDS)

    def get(self, subject: Subject | TokenSubject) -> Remembered | None:
        """Return what this process remembers. Use it only if `Versions.confirm` does."""
        return self._entries.get(subject.key)

    def read(self, subject: Subject | TokenSubject, versions: Versions) -> Snapshot | None:
        """Read and remember the rows of a subject. Returns None if the account, connection, or token is gone.

        `versions` are those that are known already.
        """
        remembered = self.get(subject)
        keys = list(remembered.labels) if remembered is not None else subject.versions
        if versions.lacks(keys):
            versions = self._create_labels(keys)
            if remembered is not None and versions.confirm(remembered):  # through another session
                return remembered.snapshot
        snapshot = _read_rows(subject)
        if snapshot is not None:
            user, connection = snapshot.user, snapshot.connection
            keys = _version_keys(user.id if user else None, connection.id if connection else None)
            labels = {key: versions.label(key) for key in keys}
            labeled_at = max(versions.read_at, versions.connected_at)
            self._entries.put(subject.key, Remembered(snapshot, labels, labeled_at))
        return snapshot

    def _create_labels(self, keys: list[str]) -> Versions:
        """Read versions, and label those that do not exist. Returns none if Redis does not allow that."""
        read_at = time.monotonic()
        commands: list[Command] = []
        for key in keys:
            commands += [("SET", key, new_label(), "NX", "EX", LABEL_SECONDS), ("GET", key)]
        try:
            replies = round_trip(self._client, commands)
        except redis.RedisError as error:
            log.warning("row_versions_unavailable", extra={"reason": type(error).__name__})
            return Versions()
        return versions_from(keys, replies, replies.values[1::2], read_at)


def versions_from(keys: Iterable[str], replies: Replies, values: list[Any], read_at: float) -> Versions:
    """Return the versions that a round trip has read, which began at `read_at` (`time.monotonic`)."""
    return Versions(dict(zip(keys, values, strict=True)), read_at, replies.connected_at)


def _version_keys(user_id: int | None, spotify_user_id: int | None) -> list[str]:
    keys = [user_version(user_id)] if user_id is not None else []
    return keys + ([connection_version(spotify_user_id)] if spotify_user_id is not None else [])


def _read_rows(subject: Subject | TokenSubject) -> Snapshot | None:
    statement = subject.statement
    if statement is None:
        return None
    with best_effort():
        _MISSES.inc()
    began_at = time.monotonic()
    rows = database.read(statement)
    return snapshots.from_row(rows[0], began_at) if rows else None
