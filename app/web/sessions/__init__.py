"""Server-side sessions in Redis.

The rest of the application uses the functions of this module. `interface` opens and saves the session of
each request, `data` defines what it contains, `cookie` carries its id, and `index` lists the sessions of a
person.
"""

import redis
from flask import Flask, Response, current_app, request, session
from flask.globals import request_ctx

from app.infra.clock import utc_now
from app.infra.redis_cipher import RedisCipher
from app.web import bearer
from app.web.error_handlers import respond_to_failure
from app.web.sessions.data import is_in_future, owner_indexes
from app.web.sessions.index import ListedSession, public_id
from app.web.sessions.interface import Session, SessionInterface
from config import Config

USER_AGENT_CHARS = 256
FRESH_SECONDS = 900


def init_app(app: Flask, config: Config, client: redis.Redis, cipher: RedisCipher) -> None:
    """Use sessions from Redis. `app.web.identity` loads that of each request.

    Register `save` too, as the last `after_request` function.
    """
    app.session_interface = SessionInterface(app, config, client, cipher)


def save(response: Response) -> Response:
    """Save this request's session. If Redis is not available, the response is replaced.

    Flask itself saves sessions after all `after_request` functions. That is too late for an error to become a
    response with CORS headers, so this is one of those functions.
    """
    current = request_ctx._session  # noqa: SLF001 - `flask.session` would mark it as accessed
    assert isinstance(current, Session)
    current.is_saved = True
    if bearer.replaces_cookie(request_ctx.request):
        return response
    try:
        interface().save_session(current_app, current, response)
    except redis.RedisError as error:
        failure = respond_to_failure(error)
        failure.vary.update(response.vary)  # it depends on the cookie just as much
        return failure
    return response


# --- The session of this request ---------------------------------------------------------------------


def persist() -> None:
    """Store this request's session even if it stays empty."""
    session.setdefault("created_at", utc_now().timestamp())


def record_client() -> None:
    """Store the client's address and user agent, for the list of a person's sessions."""
    session["address"] = request.remote_addr or ""
    session["user_agent"] = request.user_agent.string[:USER_AGENT_CHARS]


def regenerate(user_id: int | None = None) -> None:
    """Empty this request's session and give it a new id. Call this whenever a person signs in (`user_id`).

    The old id stops working at once, which prevents session fixation.
    """
    interface().regenerate(_current(), user_id=user_id)


def rotate_id() -> bool:
    """Give this request's session a new id and keep its data. Returns False if the session has ended.

    Prevents session fixation for a visitor who connects Spotify without signing in.
    """
    return interface().rotate_id(_current())


def session_key() -> str:
    """Return the Redis key of this request's session. It does not reveal the session id."""
    return interface().key_of(_current())


def exists() -> bool:
    """Return whether Redis still has this request's session, which may have ended during the request."""
    return bool(interface().client.exists(session_key()))


def is_fresh() -> bool:
    """Return whether the person signed in within the last 15 minutes."""
    signed_in_at = session.get("signed_in_at")
    if signed_in_at is None or is_in_future(signed_in_at):
        return False
    return bool(utc_now().timestamp() - signed_in_at <= FRESH_SECONDS)


def require_store() -> None:
    """Require that a session can be stored. Call this before a change that depends on it.

    Writes to Redis, because a Redis that is read-only or full still responds to PING.

    Raises:
        redis.RedisError: Redis is not available.
    """
    if _current().stored is None:
        interface().client.set("probe:session", "", px=1000)


# --- The sessions of a person ------------------------------------------------------------------------
# They include those of visitors who hold `grant_id`, the current grant of the person's connection.


def of_user(user_id: int, grant_id: str | None) -> list[ListedSession]:
    """List a user's sessions, most recently used first."""
    return interface().index.list_sessions(
        owner_indexes(user_id, grant_id), epoch=_current().get("epoch"), own=session_key()
    )


def is_own(session_id: str) -> bool:
    """Return whether this is the public id of the request's own session."""
    return public_id(session_key()) == session_id


def end_one(user_id: int, grant_id: str | None, session_id: str) -> bool:
    """End a user's session with this public id. Returns whether there was one.

    Does not end the request's own session: use `session.clear`, which deletes the cookie too.
    """
    own = session_key()
    for index in owner_indexes(user_id, grant_id):
        for key in interface().index.keys(index):
            if key != own and public_id(key) == session_id:
                return interface().endings.end_listed(_current(), key)
    return False


def end_others(user_id: int, grant_id: str | None) -> int:
    """End all of a user's sessions except the request's own. Returns how many there were."""
    own = session_key()
    return interface().index.end(owner_indexes(user_id, grant_id), lambda key: key != own)


def end_all(user_id: int, grant_id: str | None) -> int:
    """End all of a user's sessions. Needs no request. Returns how many there were."""
    return interface().index.end(owner_indexes(user_id, grant_id), lambda _: True)


def interface() -> SessionInterface:
    """Return what opens and saves sessions."""
    found = current_app.session_interface
    assert isinstance(found, SessionInterface)
    return found


def _current() -> Session:
    current = session._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    assert isinstance(current, Session)
    return current
