"""The sessions of requests: what the rest of the application does with them.

`app.web.session_store` keeps them in Redis, `app.web.session_index` lists and ends them.
"""

from collections.abc import Callable
from typing import TypeVar

import redis
from flask import Flask, Response, current_app, request, session
from flask.globals import request_ctx

from app.errors import ServiceUnavailable
from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher
from app.web.error_handlers import respond_to_failure
from app.web.session_data import indexes_of_owner, is_in_future
from app.web.session_index import ListedSession, public_id
from app.web.session_store import RedisSessions, Session
from config import Config

View = TypeVar("View", bound=Callable[..., object])

USER_AGENT_CHARS = 256
FRESH_SECONDS = 900


def of_user(user_id: int, grant_id: str | None) -> list[ListedSession]:
    """A user's sessions, last seen first, and those of visitors who hold the grant of their connection."""
    interface, current = _current()
    indexes, own = indexes_of_owner(user_id, grant_id), interface.binding(current)
    return interface.index.listed(indexes, epoch=current.get("epoch"), own=own)


def end_one(user_id: int, grant_id: str | None, session_id: str) -> bool:
    """End one session of a user. Returns whether there was one with this id.

    The request's own is not ended like this: its cookie has to go as well (`session.clear`).
    """
    interface, current = _current()
    own = interface.binding(current)
    indexes = indexes_of_owner(user_id, grant_id)
    return interface.index.end(indexes, lambda key: key != own and public_id(key) == session_id) > 0


def end_others(user_id: int, grant_id: str | None) -> int:
    """End all sessions of a user but the request's own. Returns how many there were."""
    interface, current = _current()
    own = interface.binding(current)
    return interface.index.end(indexes_of_owner(user_id, grant_id), lambda key: key != own)


def end_all(user_id: int, grant_id: str | None) -> int:
    """End all sessions of a user, also outside a request. Returns how many there were."""
    interface = current_app.session_interface
    assert isinstance(interface, RedisSessions)
    return interface.index.end(indexes_of_owner(user_id, grant_id), lambda _: True)


def is_own(session_id: str) -> bool:
    """Whether this identifies the request's own session."""
    return public_id(session_key()) == session_id


def persist() -> None:
    """Keep this request's session from now on, also if nothing else is put into it."""
    session.setdefault("created_at", utc_now().timestamp())


def note_client() -> None:
    """Store where the request comes from, for the list of a person's sessions."""
    session["address"] = request.remote_addr or ""
    session["user_agent"] = request.user_agent.string[:USER_AGENT_CHARS]


def is_fresh() -> bool:
    """Whether this session was signed in to within the last 15 minutes."""
    signed_in_at = session.get("signed_in_at")
    if signed_in_at is None or is_in_future(signed_in_at):
        return False
    return bool(utc_now().timestamp() - signed_in_at <= FRESH_SECONDS)


def require_store() -> None:
    """Check that a session can be saved, before doing what would need one.

    It writes, because a Redis that is a replica or full answers a PING.

    Raises:
        redis.RedisError: it cannot.
    """
    interface, current = _current()
    if current.stored is None:
        interface.client.set("session-probe", "", px=1000)


def regenerate() -> None:
    """Empty this request's session and give it a new id: before every change of who is signed in.

    The old id is dead at once, so one that was planted beforehand is worth nothing.
    """
    interface, current = _current()
    interface.renew(current)


def rotate_id() -> bool:
    """Give this request's session a new id at once, and keep what is in it. False if it has ended.

    For a visitor who becomes somebody, without signing in, by connecting Spotify: an id that was
    planted beforehand must not lead to the connection.
    """
    interface, current = _current()
    return interface.move(current)


def session_key() -> str:
    """What ties something kept elsewhere to this request's session; it tells nothing about the id."""
    interface, current = _current()
    return interface.binding(current)


def exists() -> bool:
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


def handles_missing_store(view: View) -> View:
    """This view calls `require_readable` where it can answer in its own way."""
    view.checks_session_itself = True  # type: ignore[attr-defined]
    return view


def save(response: Response) -> Response:
    """Save this request's session. If Redis is not available, the response is replaced.

    Flask itself saves sessions after all `after_request` functions. That is too late for an error to become a
    response with CORS headers, so this is one of those functions.
    """
    current = request_ctx._session  # noqa: SLF001 - `flask.session` would mark it as accessed
    assert isinstance(current, Session)
    current.is_saved = True
    try:
        _interface().save_session(current_app, current, response)
    except redis.RedisError as error:
        return respond_to_failure(error)
    return response


def _interface() -> RedisSessions:
    interface = current_app.session_interface
    assert isinstance(interface, RedisSessions)
    return interface


def _current() -> tuple[RedisSessions, Session]:
    interface, current = current_app.session_interface, session._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    assert isinstance(interface, RedisSessions)
    assert isinstance(current, Session)
    return interface, current


def init_app(app: Flask, config: Config, client: redis.Redis, cipher: RedisCipher) -> None:
    app.session_interface = RedisSessions(app, config, client, cipher)

    @app.before_request
    def refuse_unreachable() -> None:
        view = app.view_functions.get(request.endpoint or "")
        if view is not None and not getattr(view, "checks_session_itself", False):
            require_readable()
