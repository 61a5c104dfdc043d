"""Ends sessions so that a failover of Redis does not bring them back.

Replication is asynchronous: the server that takes over may not know that a session was deleted. So with
Sentinel or a cluster, a deletion waits until a replica has confirmed it. If none does in time, the account
gets a new `session_epoch` in the database, which no longer accepts the session. Its other sessions and its
tokens get the new epoch too. Until all of that is done, Redis keeps the session under another name, so that
the request can be repeated if it fails. docs/decisions/0064-redis-failover.md explains this.
"""

import logging
import time
from collections.abc import MutableMapping
from typing import Any, cast

import msgspec
import redis
import sqlalchemy as sa
from sqlalchemy.orm import Session as DatabaseSession

from app.infra.database import run_in_transaction_until
from app.infra.redis_cipher import RedisCipher, compare_and_set
from app.infra.redis_round_trip import Command, round_trip, values_of
from app.infra.row_versions import announce
from app.models import AccessToken, PersonalAccessToken, SpotifyUser, User
from app.models.user import new_session_epoch
from app.web.sessions import metrics
from app.web.sessions.data import SessionData, decode, encode, owner_indexes
from app.web.sessions.index import SessionIndex

log = logging.getLogger(__name__)

# How long to wait for a replica. Redis is given half a second for a reply.
REPLICA_MS = 100
# How long to retry while the database is unavailable.
DATABASE_SECONDS = 3.0


def delete(client: redis.Redis, key: str, *, is_sign_out: bool = True) -> tuple[bool, bool]:
    """Delete a session. Returns whether it existed, and whether it stays deleted after a failover.

    If there are replicas, a sign-out renames it instead: see `ended_key`.

    Raises:
        redis.RedisError: Redis is not available.
    """
    pool: Any = client.connection_pool
    if not pool.has_replicas:
        return bool(values_of(client, [("DEL", key)])[0]), True
    command: Command = ("RENAME", key, ended_key(key)) if is_sign_out else ("DEL", key)
    # WAIT is about the writes of its own connection.
    replies = pool.exchange([command, ("WAIT", 1, REPLICA_MS)])
    if replies.has_refusals:
        return _existed(round_trip(client, [command]).values[0]), False
    reply, replicas = replies.values
    return _existed(reply), isinstance(replicas, int) and replicas > 0


def ended_key(key: str) -> str:
    """Return the key of a session that has ended, until that is final. It is in the same slot of a cluster.

    The value is not accepted as a session under this name.
    """
    return f"session:ended:{{{key}}}"


def _existed(reply: Any) -> bool:
    if isinstance(reply, redis.ResponseError) and "no such key" in str(reply):
        return False
    if isinstance(reply, redis.RedisError):
        raise reply
    return bool(reply)


class SessionEndings:
    """Ends single sessions."""

    def __init__(self, client: redis.Redis, cipher: RedisCipher, index: SessionIndex) -> None:
        self._client = client
        self._cipher = cipher
        self._index = index
        self._has_replicas: bool = cast("Any", client.connection_pool).has_replicas

    def end(self, key: str, data: SessionData, *, is_sign_out: bool) -> bool:
        """Delete a session, which stays ended if this is a sign-out. Returns whether Redis still had it.

        Raises:
            redis.RedisError: Redis is not available.
            OperationalError: No replica has confirmed it, and the database is not available.
        """
        return self._end(key, data, is_sign_out=is_sign_out)[0]

    def end_listed(self, current: MutableMapping[str, Any], key: str) -> bool:
        """End another session of the current one's user, or of a visitor who uses the user's connection.

        Returns whether there was one.

        Raises:
            redis.RedisError: Redis is not available.
            OperationalError: No replica has confirmed it, and the database is not available.
        """
        _, data = self._read(key)
        existed, epoch = self.finish(key) if data is None else self._end(key, data, is_sign_out=True)
        if epoch is not None:
            current["epoch"] = epoch
        return existed

    def finish(self, key: str) -> tuple[bool, int | None]:
        """End a session in the database that an earlier request has deleted, before that request failed.

        Returns whether there was one, and the new epoch of its account.

        Raises:
            redis.RedisError: Redis is not available.
            OperationalError: The database is not available.
        """
        if not self._has_replicas:
            return False, None
        raw: Any = self._client.get(ended_key(key))
        data = decode(self._cipher, key, raw) if raw is not None else None
        if data is None:
            return False, None
        epoch = self._end_in_database(data)
        self._forget(key, data, was_renamed=True)
        return True, epoch

    def _end(self, key: str, data: SessionData, *, is_sign_out: bool) -> tuple[bool, int | None]:
        existed, stays_deleted = delete(self._client, key, is_sign_out=is_sign_out)
        metrics.count_ended(existed)
        epoch = self._end_in_database(data) if is_sign_out and not stays_deleted else None
        # If it did not exist, another request is ending it.
        self._forget(key, data, was_renamed=is_sign_out and existed)
        return existed, epoch

    def _forget(self, key: str, data: SessionData, *, was_renamed: bool) -> None:
        if was_renamed and self._has_replicas:
            self._client.delete(ended_key(key))
        if data.index is not None:
            self._index.remove(data.index, key)

    def _end_in_database(self, ended: SessionData) -> int | None:
        """Make sure that a deleted session stays invalid if it comes back.

        Returns the new epoch for the other sessions of the account, if there is one. The session of a visitor
        whose connection no account owns has none: only its deletion ends it.

        Raises:
            redis.RedisError: Redis is not available.
            OperationalError: The database is not available.
        """
        log.warning("session_end_not_replicated", extra={"account": ended.user_id})
        old, new = ended.account_epoch, new_session_epoch()
        if old is None:
            return None
        until = time.monotonic() + DATABASE_SECONDS
        found = run_in_transaction_until(until, lambda db: _replace_epoch(db, ended, new))
        if found is None:
            return None  # its epoch is an old one already
        for index in owner_indexes(*found):
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


def _replace_epoch(db: DatabaseSession, ended: SessionData, new: int) -> tuple[int, str | None] | None:
    """Replace the epoch of an account. Returns its id, and the grant of its connection. Safe to repeat."""
    owner = sa.select(SpotifyUser.user_id).where(SpotifyUser.id == ended.spotify_user_id).scalar_subquery()
    user_id = ended.user_id if ended.user_id is not None else db.scalar(sa.select(owner))
    user = db.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    if user is None or user.session_epoch not in (ended.account_epoch, new):
        return None
    announce(db, users=[user.id])
    user.session_epoch = new
    tokens = sa.update(PersonalAccessToken).where(
        PersonalAccessToken.user_id == user.id, PersonalAccessToken.session_epoch == ended.account_epoch
    )
    db.execute(tokens.values(session_epoch=new))
    grant = sa.select(AccessToken.grant_id).join(SpotifyUser, AccessToken.spotify_user_id == SpotifyUser.id)
    return user.id, db.scalar(grant.where(SpotifyUser.user_id == user.id))
