"""Versions of rows, in Redis: how every process notices that a row it remembers has changed.

A version is a random label. A reader gets the label first and the row afterwards, and may use what it has
read for as long as Redis returns the same label. A writer marks the version as changing before its COMMIT,
and replaces the label afterwards, before the change is announced. While a version is marked, readers
read the row and remember nothing. docs/decisions/0060-row-versions.md explains why this is never stale.
"""

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import redis
from flask import Flask, current_app
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.infra import redis_scripts
from app.infra.redis_round_trip import Command
from app.infra.redis_scripts import Script

log = logging.getLogger(__name__)

LABEL_SECONDS = 86_400
# After this time, a writer counts as dead. Longer than any COMMIT can take.
MARKER_SECONDS = 60
_MARKER = b"!"

_BEGIN, _END = (Script(Path(__file__).with_name(f"row_versions_{name}.lua")) for name in ("begin", "end"))


def user_version(user_id: int) -> str:
    """Return the key of the version of an account and of which connection it owns."""
    return f"version:user:{user_id}"


def connection_version(spotify_user_id: int) -> str:
    """Return the key of the version of a connection, its owner's id, and its grant."""
    return f"version:connection:{spotify_user_id}"


def new_label() -> str:
    """Return a label that no version has ever had."""
    return secrets.token_urlsafe(12)


def is_label(version: bytes | None) -> bool:
    """Return whether a version from Redis is a label, so that what is read now may be remembered with it."""
    return bool(version) and _MARKER not in (version or b"")


@dataclass(frozen=True)
class Change:
    """One writer's change of some rows, by the keys of their versions."""

    keys: tuple[str, ...]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    @classmethod
    def of(cls, *, users: Iterable[int] = (), connections: Iterable[int] = ()) -> "Change":
        """Return a change of these accounts and connections."""
        keys = {*map(user_version, users), *map(connection_version, connections)}
        return cls(tuple(sorted(keys)))


class RowVersions:
    """Marks and replaces versions on behalf of writers.

    `begin` and `end` are one round trip each. Call `end` only after a COMMIT that has succeeded, or if none
    was sent. One that has failed may take effect later: until the marker expires, readers remember nothing.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def begin(self, change: Change) -> None:
        """Mark versions as changing. Call this before the COMMIT.

        Raises:
            redis.RedisError: Redis is not available. Then the change must not be committed if a person waits
                for it: they could see the old row afterwards.
        """
        self._run([_BEGIN.command([key], change.token, MARKER_SECONDS * 1000) for key in change.keys])

    def end(self, change: Change) -> None:
        """Replace versions after the COMMIT. Only logs errors: the marker stays, which is safe."""
        try:
            self._run(
                [_END.command([key], change.token, new_label(), LABEL_SECONDS * 1000) for key in change.keys]
            )
        except redis.RedisError as error:
            log.warning("row_versions_unavailable", extra={"reason": type(error).__name__})

    def _run(self, commands: list[Command]) -> None:
        for reply in redis_scripts.run(self._client, *commands):
            if isinstance(reply, redis.RedisError):
                raise reply


# --- transactions ------------------------------------------------------------------------------------

_KEYS, _CHANGE = "row_versions_keys", "row_versions_change"


def announce(
    db: Session, *, users: Iterable[int] = (), connections: Iterable[int] = (), best_effort: bool = False
) -> None:
    """Announce that this transaction changes rows of `users`, `spotify_users`, or `access_tokens`.

    Every transaction that changes what `app.web.identity` remembers has to call this, at any time before its
    COMMIT. The versions are marked right before the COMMIT and replaced right after it. If Redis is not
    available, the COMMIT fails (`redis.RedisError`), unless all of the transaction's changes are
    `best_effort`. Use that if no request waits for the change, and if showing the old state for a minute
    is harmless.
    """
    keys: dict[str, bool] = db.info.setdefault(_KEYS, {})
    for key in Change.of(users=users, connections=connections).keys:
        keys[key] = keys.get(key, False) or not best_effort


def announced(db: Session) -> set[str]:
    """Return the versions that a transaction has announced so far."""
    change: Change | None = db.info.get(_CHANGE)
    return {*db.info.get(_KEYS, {}), *(change.keys if change else ())}


def init_app(app: Flask, versions: RowVersions) -> None:
    """Let transactions of this application announce changes."""
    app.extensions["row_versions"] = versions


def _begin(db: Session) -> None:
    if db.in_nested_transaction():
        return
    keys: dict[str, bool] = db.info.pop(_KEYS, {})
    db.info.pop(_CHANGE, None)
    if not keys:
        return
    change = db.info[_CHANGE] = Change(tuple(sorted(keys)))
    try:
        _versions().begin(change)
    except redis.RedisError as error:
        if any(keys.values()):
            raise
        log.warning("row_versions_unavailable", extra={"reason": type(error).__name__})


def _end(db: Session) -> None:
    change: Change | None = None if db.in_nested_transaction() else db.info.pop(_CHANGE, None)
    if change is not None:
        _versions().end(change)


def _versions() -> RowVersions:
    versions: RowVersions = current_app.extensions["row_versions"]
    return versions


# A COMMIT that fails may take effect all the same, so only one that succeeds ends the change.
event.listen(Session, "before_commit", _begin)
event.listen(Session, "after_commit", _end)
