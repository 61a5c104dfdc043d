"""Server-side sessions: Flask-Session's Redis store, with what is unsafe in 0.8.0 replaced.

- Nothing is unpickled: data is msgpack of known fields; anything else counts as no session.
- Values are encrypted and bound to their key, so write access to Redis cannot sign anyone in.
- `SET ... XX` for a stored session, so a slow request cannot bring a signed-out one back.
- `GETEX` restarts the idle timeout without a write; the absolute timeout is in the data.
- Redis knows a session only by a keyed hash of its id, so a dump cannot be used to sign in.
- The cookie is set when the id is issued and once a day after that, and deleted with the same attributes.
- Visitors get neither a cookie nor a key until they need one.

The indexes in `app.web.session_index` list and end sessions.
"""

import hashlib
import hmac
import logging
import math
import re
import secrets
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
from flask import Flask, Request, Response, request
from flask_session.base import ServerSideSession
from flask_session.redis import RedisSessionInterface

from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher, compare_and_set
from app.web.session_cookie import SessionCookie
from app.web.session_data import VISIT_SECONDS, SessionData, decode, encode, is_in_future
from app.web.session_index import SessionIndex
from config import Config

log = logging.getLogger(__name__)

# Probes and the documentation work without Redis.
_SESSIONS_UNDER = re.compile(r"/api/(?!docs|openapi)")
_SID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)  # 256 bits in base64url
# Safari keeps a cookie for seven days at most, so it is set again long before.
COOKIE_RENEWAL_SECONDS = 86_400


@dataclass(frozen=True)
class Stored:
    """A session as Redis held it when the request began."""

    data: SessionData
    raw: bytes
    has_old_cookie: bool  # one with the name of an earlier release


class Session(ServerSideSession):  # type: ignore[misc]
    """The session of one request. `stored` is None for one that is not in Redis (yet)."""

    def __init__(self, sid: str, stored: Stored | None = None) -> None:
        super().__init__(msgspec.structs.asdict(stored.data) if stored else None, sid=sid)
        self.stored = stored
        self.unreachable = False
        self.is_saved = False

    def __bool__(self) -> bool:
        return len(self) > 0

    def clear(self) -> None:
        # The parent's keeps a marker of its own, which would make an ended session worth saving.
        dict.clear(self)
        self.modified = self.accessed = True


class RedisSessions(RedisSessionInterface):  # type: ignore[misc]
    """Opens and saves the sessions of the API's requests; pages and probes have none."""

    session_class = Session

    def __init__(self, app: Flask, config: Config, client: redis.Redis, cipher: RedisCipher) -> None:
        super().__init__(app, client=client, key_prefix="session:", permanent=False, sid_length=32)
        self._config = config
        self._cipher = cipher
        self._cookie = SessionCookie(config)
        self.index = SessionIndex(client, cipher, config)

    def open_session(self, app: Flask, request: Request) -> Session:
        sid, is_old = self._cookie.sent_id(request)
        if not _SESSIONS_UNDER.match(request.path) or not _SID.fullmatch(sid):
            return self._new()
        try:
            stored = self._load(self._get_store_id(sid), is_old)
        except redis.RedisError as error:
            # Flask opens the session where no error handler works yet; `_refuse_unreachable` raises.
            log.error("sessions_unavailable", extra={"reason": type(error).__name__})
            session = self._new()
            session.unreachable = True
            return session
        return self._new() if stored is None else Session(sid, stored)

    def is_null_session(self, session: Session) -> bool:
        """Tell Flask not to save a session that `app.web.sessions.save` has saved."""
        return session.is_saved

    def save_session(self, app: Flask, session: Session, response: Response) -> None:
        """Store or end the session, and set or delete its cookie.

        Raises:
            redis.RedisError: Redis is not available.
        """
        if session.accessed:
            response.vary.add("Cookie")
        if session.unreachable:
            return
        if not session.modified:
            if session.stored is not None and self._is_cookie_due(session.stored):
                self._renew_cookie(session.sid, session.stored, response)
            return
        if session:
            self._store(session, response)
        else:
            self._end(session, response)

    def renew(self, session: Session) -> None:
        self._delete_session(session)
        session.clear()
        session.sid, session.stored = self._generate_sid(self.sid_length), None

    def binding(self, session: Session) -> str:
        return self._get_store_id(session.sid)

    def move(self, session: Session) -> bool:
        if not self._delete_session(session):
            return False
        # Stored under the new id when the request ends. Nobody else knows that id until then.
        session.sid, session.stored, session.modified = self._generate_sid(self.sid_length), None, True
        return True

    def _store(self, session: Session, response: Response) -> None:
        session.setdefault("created_at", utc_now().timestamp())
        before = session.stored
        sets_cookie = before is None or self._is_cookie_due(before)
        if sets_cookie:
            session["cookie_set_at"] = utc_now().timestamp()
        data, key = msgspec.convert(dict(session), SessionData), self._get_store_id(session.sid)
        listed_before = before.data.index if before else None
        with self.client.pipeline(transaction=True) as batch:
            if data.index is not None and data.index != listed_before:
                # Together with the session, or one could exist that its owner cannot see.
                self.index.add(batch, data.index, key, data.created_at)
            batch.set(
                key, encode(self._cipher, key, data), ex=self._idle_seconds(data), xx=before is not None
            )
            was_stored = batch.execute()[-1]
        if listed_before is not None and data.index != listed_before:
            self.index.forget(listed_before, key)
        if data.index is not None and data.index != listed_before:
            self.index.end_oldest(data.index)
        if sets_cookie and was_stored:  # not if it was signed out during the request
            self._set_cookie(session.sid, data, response)

    def _end(self, session: Session, response: Response) -> None:
        """End a session, and the one that the browser may still have under the old name of the cookie."""
        self._delete_session(session)
        old_sid = self._cookie.old_id(request)
        if _SID.fullmatch(old_sid):
            self.client.delete(self._get_store_id(old_sid))
        self._cookie.delete(request, response)

    def _is_cookie_due(self, stored: Stored) -> bool:
        """Whether to set the cookie again. A visitor without a connection has nothing to keep for long."""
        set_at = stored.data.cookie_set_at
        is_due = utc_now().timestamp() - set_at >= COOKIE_RENEWAL_SECONDS or is_in_future(set_at)
        return stored.has_old_cookie or (is_due and self._holds_something(stored.data))

    def _renew_cookie(self, sid: str, stored: Stored, response: Response) -> None:
        """Set the cookie again. Of several requests at the same time, one does."""
        key = self._get_store_id(sid)
        data = msgspec.structs.replace(stored.data, cookie_set_at=utc_now().timestamp())
        try:
            encoded = encode(self._cipher, key, data)
            renewed = compare_and_set(self.client, key, stored.raw, encoded)
        except redis.RedisError as error:
            log.error("sessions_unavailable", extra={"reason": type(error).__name__})
            return  # the next request tries again
        if renewed:
            self._set_cookie(sid, data, response)

    def _set_cookie(self, sid: str, data: SessionData, response: Response) -> None:
        left = data.created_at + self._config.session_max_seconds - utc_now().timestamp()
        self._cookie.set(request, response, sid, max_age=math.ceil(left))

    def _new(self) -> Session:
        return Session(sid=self._generate_sid(self.sid_length))

    def _get_store_id(self, sid: str) -> str:
        digest = hmac.new(self._config.secret_key.encode(), sid.encode(), hashlib.sha256).hexdigest()
        return f"{self.key_prefix}{digest}"

    def _generate_sid(self, session_id_length: int) -> str:
        return secrets.token_urlsafe(session_id_length)

    def _load(self, key: str, has_old_cookie: bool) -> Stored | None:
        raw: Any = self.client.getex(key, ex=self._config.session_idle_seconds)
        data = decode(self._cipher, key, raw) if raw is not None else None
        if data is None:
            return None
        stored = Stored(data, raw, has_old_cookie)
        if utc_now().timestamp() - data.created_at > self._config.session_max_seconds:
            self._delete(key, data.index)
            return None
        if self._idle_seconds(data) < self._config.session_idle_seconds:
            self.client.expire(key, self._idle_seconds(data))
        return stored

    def _idle_seconds(self, data: SessionData) -> int:
        longest = self._config.session_idle_seconds
        return longest if self._holds_something(data) else min(VISIT_SECONDS, longest)

    def _holds_something(self, data: SessionData) -> bool:
        return data.user_id is not None or data.spotify_user_id is not None

    def _delete_session(self, session: Session) -> bool:
        """Delete the session as it was when the request began. Returns whether Redis still had it."""
        stored = session.stored
        return stored is not None and self._delete(self._get_store_id(session.sid), stored.data.index)

    def _delete(self, key: str, index: str | None) -> bool:
        existed = bool(self.client.delete(key))
        if index is not None:
            self.index.forget(index, key)
        return existed
