"""Ends sessions so that a failover of Redis does not bring them back.

Replication is asynchronous: the server that takes over may not know that a session was deleted. So with
Sentinel or a cluster, a deletion waits until a replica has confirmed it. If none does in time, the account
gets a new `session_epoch` in the database, which no longer accepts the session. Its other sessions and its
tokens get the new epoch too. docs/decisions/0064-redis-failover.md explains this.
"""

import logging
from collections.abc import MutableMapping
from typing import Any

import msgspec
import redis
import sqlalchemy as sa
from sqlalchemy.orm import Session as DatabaseSession

from app.infra.database import run_in_transaction
from app.infra.redis_cipher import RedisCipher, compare_and_set
from app.infra.redis_round_trip import Command, values_of
from app.infra.row_versions import announce
from app.models import AccessToken, PersonalAccessToken, SpotifyUser, User
from app.web.sessions import metrics
from app.web.sessions.data import SessionData, decode, encode, owner_indexes
from app.web.sessions.index import SessionIndex

log = logging.getLogger(__name__)

# How long to wait for a replica. Redis is given half a second for a reply.
REPLICA_MS = 100


def delete(client: redis.Redis, key: str) -> tuple[bool, bool]:
    """Delete a session. Returns whether it existed, and whether it stays deleted after a failover.

    Raises:
        redis.RedisError: Redis is not available.
    """
    pool: Any = client.connection_pool
    command: Command = ("DEL", key)
    if not pool.has_replicas:
        return bool(values_of(client, [command])[0]), True
    # WAIT is about the writes of its own connection.
    replies = pool.exchange([command, ("WAIT", 1, REPLICA_MS)])
    if replies.has_refusals:
        return bool(values_of(client, [command])[0]), False
    existed, replicas = replies.values
    if isinstance(existed, redis.RedisError):
        raise existed
    return bool(existed), isinstance(replicas, int) and replicas > 0


class SessionEndings:
    """Ends single sessions."""

    def __init__(self, client: redis.Redis, cipher: RedisCipher, index: SessionIndex) -> None:
        self._client = client
        self._cipher = cipher
        self._index = index

    def end(self, key: str, data: SessionData, *, is_sign_out: bool) -> bool:
        """Delete a session, which stays ended if this is a sign-out. Returns whether Redis still had it.

        Raises:
            redis.RedisError: Redis is not available.
        """
        existed, stays_deleted = self._delete(key, data)
        if is_sign_out and not stays_deleted:
            self._end_in_database(data)
        return existed

    def end_listed(self, current: MutableMapping[str, Any], key: str) -> bool:
        """End another session of the current one's user, or of a visitor who uses the user's connection.

        Returns whether there was one.

        Raises:
            redis.RedisError: Redis is not available.
        """
        _, data = self._read(key)
        if data is None:
            return False
        existed, stays_deleted = self._delete(key, data)
        epoch = None if stays_deleted else self._end_in_database(data)
        if epoch is not None:
            current["epoch"] = epoch
        return existed

    def _delete(self, key: str, data: SessionData) -> tuple[bool, bool]:
        existed, stays_deleted = delete(self._client, key)
        metrics.count_ended(existed)
        if data.index is not None:
            self._index.remove(data.index, key)
        return existed, stays_deleted

    def _end_in_database(self, ended: SessionData) -> int | None:
        """Make sure that a deleted session stays invalid if it comes back.

        Returns the new epoch for the other sessions of the account, if there is one. The session of a visitor
        whose connection no account owns has none: only its deletion ends it.

        Raises:
            redis.RedisError: Redis is not available.
        """
        log.warning("session_end_not_replicated", extra={"account": ended.user_id})
        old = ended.account_epoch
        found = run_in_transaction(lambda db: _replace_epoch(db, ended)) if old is not None else None
        if old is None or found is None:
            return None  # its epoch is an old one already
        user_id, new, grant_id = found
        for index in owner_indexes(user_id, grant_id):
            for key in self._index.keys(index):
                self._move(key, old, new)
        return new

    def _move(self, key: str, old: int, new: int) -> None:
        """Give a session the new epoch of its account. One that changes at this moment ends."""
        raw, data = self._read(key)
        if data is None or data.account_epoch != old:
            return
        names = [name for name in ("epoch", "owner_epoch") if getattr(data, name) == old]
        moved = msgspec.structs.replace(data, **dict.fromkeys(names, new))
        compare_and_set(self._client, key, raw, encode(self._cipher, key, moved))

    def _read(self, key: str) -> tuple[bytes, SessionData | None]:
        raw: Any = self._client.get(key)
        return raw or b"", decode(self._cipher, key, raw) if raw is not None else None


def _replace_epoch(db: DatabaseSession, ended: SessionData) -> tuple[int, int, str | None] | None:
    """Replace the epoch of an account. Returns its id, the new epoch, and the grant of its connection."""
    owner = sa.select(SpotifyUser.user_id).where(SpotifyUser.id == ended.spotify_user_id).scalar_subquery()
    user_id = ended.user_id if ended.user_id is not None else db.scalar(sa.select(owner))
    user = db.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    if user is None or user.session_epoch != ended.account_epoch:
        return None
    old = user.session_epoch
    announce(db, users=[user.id])
    user.end_sessions()
    tokens = sa.update(PersonalAccessToken).where(
        PersonalAccessToken.user_id == user.id, PersonalAccessToken.session_epoch == old
    )
    db.execute(tokens.values(session_epoch=user.session_epoch))
    grant = sa.select(AccessToken.grant_id).join(SpotifyUser, AccessToken.spotify_user_id == SpotifyUser.id)
    return user.id, user.session_epoch, db.scalar(grant.where(SpotifyUser.user_id == user.id))
