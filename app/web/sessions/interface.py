"""Opens and saves the session of each request, with safe replacements for parts of Flask-Session.

- Nothing is unpickled. Data is msgpack of known fields; anything else counts as no session.
- Values are encrypted and bound to their key, so write access to Redis cannot sign anyone in.
- A stored session is saved with `SET ... XX`, so a slow request cannot restore one that was signed out.
- `GETEX` restarts the idle timeout without a write. The absolute timeout is part of the data.
- The Redis key is a keyed hash of the session id, so a dump of Redis cannot be used to sign in.
- The cookie is set when the id is issued and once a day after that, and deleted with the same attributes.
- Visitors get neither a cookie nor a key until they need one.

Source: https://github.com/pallets-eco/flask-session/blob/0.8.0/src/flask_session/base.py
"""

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
from app.infra.expiring_cache import ExpiringCache
from app.infra.redis_cipher import RedisCipher, compare_and_set
from app.infra.redis_round_trip import Command, values_of
from app.web.sessions import metrics
from app.web.sessions.cookie import SessionCookie
from app.web.sessions.data import (
    CLOCK_SKEW_SECONDS,
    EMPTY_SESSION_SECONDS,
    SessionData,
    decode,
    encode,
    is_in_future,
)
from app.web.sessions.endings import SessionEndings
from app.web.sessions.index import SessionIndex
from config import Config

log = logging.getLogger(__name__)

_SID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)  # 256 bits in base64url
# Safari keeps a cookie for seven days at most, so it is set again well before that.
COOKIE_REFRESH_SECONDS = 86_400
REMEMBERED_SESSIONS, REMEMBERED_SECONDS = 4096, 300.0


@dataclass(frozen=True, slots=True)
class RequestedSession:
    """The session that a request's cookie names. It may not exist.

    `expected` is what the session contained when this process last read it, if it remembers.
    """

    sid: str
    key: str
    has_old_cookie: bool  # one with the name that an earlier release used
    expected: SessionData | None


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session as Redis had it when the request began."""

    data: SessionData
    raw: bytes
    has_old_cookie: bool  # one with the name that an earlier release used


class Session(ServerSideSession):  # type: ignore[misc]
    """The session of one request. `stored` is None if it is not in Redis (yet)."""

    _sid = ""

    def __init__(self) -> None:
        super().__init__(sid="")
        self.stored: StoredSession | None = None
        self.identity: Any = None  # `app.web.identity.Identity`
        self.is_saved = False

    @property
    def sid(self) -> str:
        """The id. Most requests name one; for others, it is made when it is needed."""
        self._sid = self._sid or secrets.token_urlsafe(32)
        return self._sid

    @sid.setter
    def sid(self, sid: str) -> None:
        self._sid = sid

    def fill(self, sid: str, stored: StoredSession) -> None:
        """Become the session that Redis has under this id. Does not count as a change."""
        self.sid, self.stored = sid, stored
        dict.update(self, msgspec.structs.asdict(stored.data))

    def __bool__(self) -> bool:
        return len(self) > 0

    def clear(self) -> None:
        """Remove everything, so that the session ends when it is saved."""
        # The parent's method leaves a marker in the session, so an ended session would be stored again.
        dict.clear(self)
        self.modified = self.accessed = True


class SessionInterface(RedisSessionInterface):  # type: ignore[misc]
    """Opens and saves the sessions of API requests. Pages and probes have none."""

    session_class = Session

    def __init__(self, app: Flask, config: Config, client: redis.Redis, cipher: RedisCipher) -> None:
        super().__init__(app, client=client, key_prefix="session:", permanent=False)
        self._config = config
        self._cipher = cipher
        self._cookie = SessionCookie(config)
        self._key_hash = hmac.new(config.secret_key.encode(), digestmod="sha256")
        # What sessions contained when they were last read. Saves decoding the same bytes again.
        self._decoded = ExpiringCache[str, tuple[bytes, SessionData]](REMEMBERED_SESSIONS, REMEMBERED_SECONDS)
        self.index = SessionIndex(client, cipher, config)
        self.endings = SessionEndings(client, cipher, self.index)

    def open_session(self, app: Flask, request: Request) -> Session:
        """Return an empty session, without any I/O. `app.web.identity.load` fills it."""
        return Session()

    def requested(self, request: Request) -> RequestedSession | None:
        """Return which session a request asks for, if any."""
        sid, has_old_cookie = self._cookie.read(request)
        if not _SID.fullmatch(sid):
            return None
        key = self._get_store_id(sid)
        remembered = self._decoded.get(key)
        return RequestedSession(sid, key, has_old_cookie, remembered[1] if remembered else None)

    def read_command(self, requested: RequestedSession) -> Command:
        """Return the command that reads a session and restarts its idle timeout."""
        return "GETEX", requested.key, "EX", self._expected_idle_seconds(requested)

    def open_stored(self, session: Session, requested: RequestedSession, raw: bytes | None) -> None:
        """Fill a request's session from the reply to `read_command`. It stays empty if there is none.

        Raises:
            redis.RedisError: Redis is not available.
        """
        if raw is None:
            self._decoded.remove(requested.key)  # it has ended, so expect nothing of it
            return
        data = self._decode(requested.key, raw)
        if data is None:
            return
        age = utc_now().timestamp() - data.created_at
        if age < -CLOCK_SKEW_SECONDS:  # a clock has been set back since it was decoded
            return
        if age > self._config.session_max_seconds:
            self.endings.end(requested.key, data, is_sign_out=False)
            return
        if self._idle_seconds(data) != self._expected_idle_seconds(requested):
            self.client.expire(requested.key, self._idle_seconds(data))
        session.fill(requested.sid, StoredSession(data, raw, requested.has_old_cookie))

    def is_null_session(self, session: Session) -> bool:
        """Tell Flask not to save a session that `app.web.sessions.save` has saved."""
        return session.is_saved

    def save_session(self, app: Flask, session: Session, response: Response) -> None:
        """Store or end the session, and set or delete its cookie.

        Raises:
            redis.RedisError: Redis is not available.
        """
        if session.accessed:
            if "Vary" in response.headers:
                response.vary.add("Cookie")
            else:
                response.headers["Vary"] = "Cookie"  # faster
        if not session.modified:
            if session.stored is not None and self._is_cookie_due(session.stored):
                self._refresh_cookie(session.sid, session.stored, response)
        elif session:
            self._store(session, response)
        else:
            self._end(session, response)

    def regenerate(self, session: Session, *, user_id: int | None = None) -> None:
        """Delete the session from Redis, empty it, and give it a new id. Signs everyone out but this user."""
        former = session.stored.data.user_id if session.stored is not None else None
        self._delete_stored(session, is_sign_out=former not in (None, user_id))
        session.clear()
        session.sid, session.stored = "", None

    def rotate_id(self, session: Session) -> bool:
        """Delete the session from Redis and give it a new id. Returns False if Redis no longer had it."""
        if not self._delete_stored(session, is_sign_out=False):
            return False
        # Stored under the new id when the request ends. Until then, no one else knows that id.
        session.sid, session.stored, session.modified = "", None, True
        return True

    def key_of(self, session: Session) -> str:
        """Return the Redis key of a session."""
        return self._get_store_id(session.sid)

    def _decode(self, key: str, raw: bytes) -> SessionData | None:
        remembered = self._decoded.get(key)
        if remembered is not None and remembered[0] == raw:
            return remembered[1]
        data = decode(self._cipher, key, raw)
        if data is None:
            self._decoded.remove(key)
        else:
            self._decoded.put(key, (raw, data))
        return data

    def _expected_idle_seconds(self, requested: RequestedSession) -> int:
        expected = requested.expected
        return self._config.session_idle_seconds if expected is None else self._idle_seconds(expected)

    def _store(self, session: Session, response: Response) -> None:
        session.setdefault("created_at", utc_now().timestamp())
        stored = session.stored
        sets_cookie = stored is None or self._is_cookie_due(stored)
        if sets_cookie:
            session["cookie_set_at"] = utc_now().timestamp()
        data = msgspec.convert(dict(session), SessionData)
        was_stored = self._write(self._get_store_id(session.sid), data, stored)
        metrics.count_stored(data, is_new=stored is None)
        if sets_cookie and was_stored:
            self._set_cookie(session.sid, data, response)

    def _write(self, key: str, data: SessionData, stored: StoredSession | None) -> bool:
        """Write a session and its index. Returns False if the session has ended during the request."""
        old_index = stored.data.index if stored else None
        changes_index = data.index != old_index
        commands: list[Command] = []
        if data.index is not None and changes_index:
            commands += self.index.add_commands(data.index, key, data.created_at)
        only_if_stored = ("XX",) if stored is not None else ()
        encoded = encode(self._cipher, key, data)
        commands.append(("SET", key, encoded, "EX", self._idle_seconds(data), *only_if_stored))
        was_stored = values_of(self.client, commands)[-1] is not None
        if changes_index and old_index is not None:
            self.index.remove(old_index, key)
        if changes_index and data.index is not None:
            self.index.end_oldest(data.index)
        return was_stored

    def _end(self, session: Session, response: Response) -> None:
        """End the session, and the one in the cookie with the old name, if the browser still has one."""
        self._delete_stored(session, is_sign_out=True)
        old_sid = self._cookie.read_old(request)
        if _SID.fullmatch(old_sid):
            self.client.delete(self._get_store_id(old_sid))
        self._cookie.delete(request, response)

    def _is_cookie_due(self, stored: StoredSession) -> bool:
        """Return whether to set the cookie again. The cookie of an empty session needs no refresh."""
        set_at = stored.data.cookie_set_at
        is_old = utc_now().timestamp() - set_at >= COOKIE_REFRESH_SECONDS or is_in_future(set_at)
        return stored.has_old_cookie or (is_old and not stored.data.is_empty)

    def _refresh_cookie(self, sid: str, stored: StoredSession, response: Response) -> None:
        """Set the cookie again. Of several concurrent requests, only one does."""
        key = self._get_store_id(sid)
        data = msgspec.structs.replace(stored.data, cookie_set_at=utc_now().timestamp())
        try:
            is_first = compare_and_set(self.client, key, stored.raw, encode(self._cipher, key, data))
        except redis.RedisError as error:
            log.error("sessions_unavailable", extra={"reason": type(error).__name__})
            return  # the next request tries again
        if is_first:
            self._set_cookie(sid, data, response)

    def _set_cookie(self, sid: str, data: SessionData, response: Response) -> None:
        seconds_left = data.created_at + self._config.session_max_seconds - utc_now().timestamp()
        self._cookie.set(request, response, sid, max_age=math.ceil(seconds_left))

    def _delete_stored(self, session: Session, *, is_sign_out: bool) -> bool:
        """Delete the session as it was when the request began. Returns whether Redis still had it."""
        stored = session.stored
        if stored is None:
            if requested := self.requested(request):
                self.endings.finish(requested.key)
            return False
        return self.endings.end(self._get_store_id(session.sid), stored.data, is_sign_out=is_sign_out)

    def _idle_seconds(self, data: SessionData) -> int:
        longest = self._config.session_idle_seconds
        return min(EMPTY_SESSION_SECONDS, longest) if data.is_empty else longest

    def _get_store_id(self, sid: str) -> str:
        keyed = self._key_hash.copy()
        keyed.update(sid.encode())
        return f"{self.key_prefix}{keyed.hexdigest()}"
