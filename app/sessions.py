"""Server-side sessions: Flask-Session's Redis store, with what is unsafe in 0.8.0 replaced.

- Nothing is unpickled: data is msgpack of known fields, anything else counts as no session.
- `SET ... XX` for a stored session, so a slow request cannot bring a signed-out one back.
- `GETEX` slides the idle time-out without a write; an absolute one stands in the data.
- Redis knows a session only by a keyed hash of its id, so a dump opens nothing.
- The cookie is set once per id, and deleted with the attributes it was set with.
- Strangers get neither a cookie nor a key.

Beside them stands an index by user (`app.session_index`).
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import redis
from flask import Flask, Request, Response, current_app, request, session
from flask_session.base import ServerSideSession
from flask_session.redis import RedisSessionInterface

from app.clock import utc_now
from app.problems import ServiceUnavailable
from app.session_index import ListedSession, SessionData, SessionIndex, decode, names_session
from config import Config

log = logging.getLogger(__name__)

View = TypeVar("View", bound=Callable[..., object])

# Probes and the documentation work without Redis.
_SESSIONS_UNDER = re.compile(r"/api/(?!docs|openapi)")
# A visitor who was sent to Spotify and holds nothing yet. As long as that takes at most: anybody can begin
# as many as they like, and Redis must not keep each of them for days.
VISIT_SECONDS = 600
_SID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)  # 256 bits in base64url


class Session(ServerSideSession):  # type: ignore[misc]
    """The session of one request. `stored` says whether Redis held it when the request began."""

    def __init__(self, initial: dict[str, Any] | None = None, *, sid: str, stored: bool = False) -> None:
        super().__init__(initial, sid=sid)
        self.stored = stored
        # As it was when the request began. Not `self.get`: that would be to have used the session.
        self.owner: int | None = dict.get(self, "user_id")
        self.moved = False
        self.unreachable = False

    def __bool__(self) -> bool:
        return len(self) > 0

    def clear(self) -> None:
        # The parent's keeps a marker of its own, which would make an ended session worth saving.
        dict.clear(self)
        self.modified = self.accessed = True


class RedisSessions(RedisSessionInterface):  # type: ignore[misc]
    """Opens and saves the sessions of the API's requests; pages and probes have none."""

    session_class = Session

    def __init__(self, app: Flask, config: Config, client: redis.Redis) -> None:
        super().__init__(app, client=client, key_prefix="session:", permanent=False, sid_length=32)
        self._config = config
        self.index = SessionIndex(client, config)

    def open_session(self, app: Flask, request: Request) -> Session:
        sid = request.cookies.get(self._config.session_cookie_name, "")
        if not _SESSIONS_UNDER.match(request.path) or not _SID.fullmatch(sid):
            return self._new()
        try:
            data = self._retrieve_session_data(self._get_store_id(sid))
        except redis.RedisError as error:
            # Flask opens the session where no error handler works yet; `_refuse_unreachable` raises.
            log.error("sessions_unavailable", extra={"reason": type(error).__name__})
            session = self._new()
            session.unreachable = True
            return session
        return self._new() if data is None else Session(data, sid=sid, stored=True)

    def save_session(self, app: Flask, session: Session, response: Response) -> None:
        if session.accessed:
            response.vary.add("Cookie")
        if not session.modified or session.unreachable:
            return
        try:
            if session:
                self._store(app, session, response)
            else:
                self._delete_session(self._get_store_id(session.sid), session.owner)
                self._delete_cookie(app, response)
        except redis.RedisError as error:
            session.unreachable = True  # Flask saves once more when it answers the error
            raise ServiceUnavailable from error

    def renew(self, session: Session) -> None:
        if session.stored:
            self._delete_session(self._get_store_id(session.sid), session.owner)
        session.clear()
        session.sid, session.stored, session.owner = self._generate_sid(self.sid_length), False, None

    def binding(self, session: Session) -> str:
        return self._get_store_id(session.sid)

    def move(self, session: Session) -> bool:
        new = self._generate_sid(self.sid_length)
        try:
            self.client.rename(self._get_store_id(session.sid), self._get_store_id(new))
        except redis.ResponseError as error:
            if str(error) != "no such key":  # such as READONLY: the session may well be there
                raise
            return False
        session.sid, session.moved, session.modified = new, True, True
        return True

    def _store(self, app: Flask, session: Session, response: Response) -> None:
        session.setdefault("created_at", utc_now().timestamp())
        data = msgspec.convert(dict(session), SessionData)
        key, encoded = self._get_store_id(session.sid), msgspec.msgpack.encode(data)
        with self.client.pipeline(transaction=True) as batch:
            if data.user_id is not None and not session.stored:
                # Together with the session, or one could live that its owner cannot see.
                self.index.add(batch, data.user_id, key, data.created_at)
            batch.set(key, encoded, ex=self._idle_seconds(data), xx=session.stored)
            batch.execute()
        if data.user_id is not None and not session.stored:
            self.index.end_oldest(data.user_id)
        if not session.stored or session.moved:
            response.set_cookie(
                self._config.session_cookie_name,
                session.sid,
                max_age=self._config.session_max_seconds,
                **self._cookie_attributes(app),
            )

    def _delete_cookie(self, app: Flask, response: Response) -> None:
        if self._config.session_cookie_name in request.cookies:
            response.delete_cookie(self._config.session_cookie_name, **self._cookie_attributes(app))

    def _cookie_attributes(self, app: Flask) -> dict[str, Any]:
        return {
            "path": "/",
            "secure": self.get_cookie_secure(app),
            "httponly": True,
            "samesite": self.get_cookie_samesite(app),
            "partitioned": self.get_cookie_partitioned(app),
        }

    def _new(self) -> Session:
        return Session(sid=self._generate_sid(self.sid_length))

    def _get_store_id(self, sid: str) -> str:
        digest = hmac.new(self._config.secret_key.encode(), sid.encode(), hashlib.sha256).hexdigest()
        return f"{self.key_prefix}{digest}"

    def _generate_sid(self, session_id_length: int) -> str:
        return secrets.token_urlsafe(session_id_length)

    def _retrieve_session_data(self, store_id: str) -> dict[str, Any] | None:
        raw = self.client.getex(store_id, ex=self._config.session_idle_seconds)
        if raw is None:
            return None
        data = decode(raw)
        if data is None:
            return None
        if utc_now().timestamp() - data.created_at > self._config.session_max_seconds:
            self._delete_session(store_id, data.user_id)
            return None
        if self._idle_seconds(data) < self._config.session_idle_seconds:
            self.client.expire(store_id, self._idle_seconds(data))
        return msgspec.structs.asdict(data)

    def _idle_seconds(self, data: SessionData) -> int:
        holds_something = data.user_id is not None or data.spotify_user_id is not None
        longest = self._config.session_idle_seconds
        return longest if holds_something else min(VISIT_SECONDS, longest)

    def _delete_session(self, store_id: str, user_id: int | None = None) -> None:
        self.client.delete(store_id)
        if user_id is not None:
            self.index.forget(user_id, store_id)


def of_user(user_id: int) -> list[ListedSession]:
    """The sessions that a user has, the one seen last first."""
    interface, current = _current()
    return interface.index.listed(user_id, own=interface.binding(current), epoch=current.get("epoch", 0))


def end_one(user_id: int, public_id: str) -> bool:
    """End one session of a user's. Returns whether there was one with this id.

    The request's own is not ended like this: its cookie has to go as well (`session.clear`).
    """
    interface, current = _current()
    own = interface.binding(current)
    return interface.index.end(user_id, lambda key: key != own and names_session(key) == public_id) > 0


def end_others(user_id: int) -> int:
    """End all sessions of a user but the request's own. Returns how many there were."""
    interface, current = _current()
    own = interface.binding(current)
    return interface.index.end(user_id, lambda key: key != own)


def end_all(user_id: int) -> int:
    """End all sessions of a user. Returns how many there were."""
    interface, _ = _current()
    return interface.index.end(user_id, lambda _: True)


def is_own(public_id: str) -> bool:
    """Whether this names the request's own session."""
    return names_session(binding()) == public_id


def start() -> None:
    """Keep this request's session from now on, also if nothing else is put into it."""
    session.setdefault("created_at", utc_now().timestamp())


def require_store() -> None:
    """Check that a session can be saved, before doing what would need one.

    It writes, because a Redis that is a replica or full answers a PING.

    Raises:
        redis.RedisError: it cannot.
    """
    interface, current = _current()
    if not current.stored:
        interface.client.set("session-probe", "", px=1000)


def renew() -> None:
    """Empty this request's session and give it a new id: before every change of who is signed in.

    The old id is dead at once, so one that was planted beforehand is worth nothing.
    """
    interface, current = _current()
    interface.renew(current)


def move() -> bool:
    """Give this request's session a new id at once, and keep what is in it. False if it has ended.

    For a visitor who becomes somebody, without signing in, by connecting Spotify: an id that was
    planted beforehand must not lead to the connection.
    """
    interface, current = _current()
    return interface.move(current)


def binding() -> str:
    """What ties something kept elsewhere to this request's session; it tells nothing about the id."""
    interface, current = _current()
    return interface.binding(current)


def is_there() -> bool:
    """Whether the request's session has not ended since the request began."""
    interface, current = _current()
    return bool(interface.client.exists(interface.binding(current)))


def require_readable() -> None:
    """See that the session is what it seems: without Redis, everybody looks like a stranger.

    Raises:
        ServiceUnavailable
    """
    if getattr(session, "unreachable", False):
        raise ServiceUnavailable


def checks_itself(view: View) -> View:
    """This view calls `require_readable` where it can answer in its own way."""
    view.checks_session_itself = True  # type: ignore[attr-defined]
    return view


def _current() -> tuple[RedisSessions, Session]:
    interface, current = current_app.session_interface, session._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    assert isinstance(interface, RedisSessions)
    assert isinstance(current, Session)
    return interface, current


def init_app(app: Flask, config: Config, client: redis.Redis) -> None:
    app.config.update(
        SESSION_COOKIE_SECURE=config.session_cookie_secure,
        SESSION_COOKIE_SAMESITE=config.session_cookie_samesite,
        # A cookie for another site's frames and fetches must be partitioned, or browsers drop it (CHIPS).
        SESSION_COOKIE_PARTITIONED=config.session_cookie_samesite == "None",
    )
    app.session_interface = RedisSessions(app, config, client)

    @app.before_request
    def refuse_unreachable() -> None:
        view = app.view_functions.get(request.endpoint or "")
        if view is not None and not getattr(view, "checks_session_itself", False):
            require_readable()
