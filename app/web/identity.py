"""Who a request is from: its session, and the rows of the account or the connection that the session names.

All of it comes in one round trip to Redis and, if the rows have changed, one statement.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from flask import Flask, current_app, g, request, session
from flask.globals import request_ctx

from app.errors import ServiceUnavailable
from app.infra.redis_round_trip import Command, round_trip
from app.models.snapshots import Snapshot
from app.web.sessions.data import SessionData
from app.web.sessions.interface import RequestedSession, Session, SessionInterface
from app.web.snapshot_cache import Remembered, SnapshotCache, Subject, Versions, versions_from

log = logging.getLogger(__name__)

View = TypeVar("View", bound=Callable[..., object])
# Returns further commands for the round trip, given what the session and the rows contained last time.
FurtherCommands = Callable[[SessionData, Snapshot], Sequence[Command]]

# Probes and the documentation work without Redis.
_WITHOUT_SESSION = ("/api/docs", "/api/openapi")


class _Identity:
    """What one request has read so far."""

    __slots__ = ("snapshot", "subject", "versions")

    def __init__(self) -> None:
        self.versions = Versions()
        self.subject: Subject | None = None  # that of `snapshot`, once it has been read
        self.snapshot: Snapshot | None = None


def loads_session(view: View) -> View:
    """Mark a view that calls `load` itself. For others, it is called before they run."""
    view.loads_session = True  # type: ignore[attr-defined]
    return view


def init_app(app: Flask, client: redis.Redis) -> None:
    """Load the session of every API request that a view will handle."""
    app.extensions["snapshots"] = SnapshotCache(client)

    @app.before_request
    def load_session() -> None:
        if request.method == "OPTIONS" or request.routing_exception is not None:
            return
        path = request.path
        if not path.startswith("/api/") or path.startswith(_WITHOUT_SESSION):
            return
        if not getattr(current_app.view_functions[request.endpoint or ""], "loads_session", False):
            load()


def load(further: FurtherCommands | None = None) -> list[Any] | None:
    """Load the request's session.

    Returns the replies to the `further` commands, if everything that they were made from is still valid.
    A reply that is a `redis.ResponseError` is Redis' own.

    Raises:
        ServiceUnavailable: Redis is not available.
    """
    identity = g.identity = _Identity()
    current: Session = request_ctx._session  # type: ignore[assignment]  # noqa: SLF001
    current.accessed = True  # every response depends on the cookie
    interface: SessionInterface = current_app.session_interface  # type: ignore[assignment]
    requested = interface.requested(request)
    if requested is None:
        return None
    try:
        return _load(identity, current, interface, requested, further)
    except redis.RedisError as error:
        log.error("sessions_unavailable", extra={"reason": type(error).__name__})
        raise ServiceUnavailable from None


def current_snapshot() -> Snapshot | None:
    """Return the rows of the account or the connection that this request's session names.

    The caller checks whether the session may use them. None if the session names none, or if it is gone.
    """
    subject = _subject_of(session)
    if subject is None:
        return None
    identity: _Identity | None = g.get("identity")
    if identity is None:
        identity = g.identity = _Identity()
    if identity.subject is None or identity.subject.key != subject.key:
        identity.snapshot = _cache().read(subject, identity.versions)
        identity.subject = subject  # only after the statement has succeeded
    return identity.snapshot


def remembered_body(name: str, encode: Callable[[], bytes]) -> bytes:
    """Return the body of a response that depends on nothing but the current snapshot, encoded once."""
    snapshot = current_snapshot()
    if snapshot is None:
        return encode()
    body = snapshot.bodies.get(name)
    if body is None:
        body = snapshot.bodies[name] = encode()
    return body


def forget() -> None:
    """Forget what this request has read so far, because it has changed the rows or the session."""
    g.identity = _Identity()


def _load(
    identity: _Identity,
    current: Session,
    interface: SessionInterface,
    requested: RequestedSession,
    further: FurtherCommands | None,
) -> list[Any] | None:
    subject, remembered = _expected(requested)
    keys = list(remembered.labels) if remembered else subject.versions if subject else []
    commands: list[Command] = [interface.read_command(requested), *(("GET", key) for key in keys)]
    sent = len(commands)
    if further is not None and remembered is not None and requested.expected is not None:
        commands += further(requested.expected, remembered.snapshot)
    began_at = time.monotonic()
    replies = round_trip(interface.client, commands)
    raw, *values = replies.values
    if isinstance(raw, redis.ResponseError):
        raise raw
    interface.open_stored(current, requested, raw)
    identity.versions = versions_from(keys, replies, values[: sent - 1], began_at)
    found = _subject_of(current)
    if subject is None or remembered is None or found is None or found.key != subject.key:
        return None
    if not identity.versions.confirm(remembered):
        return None
    identity.subject, identity.snapshot = found, remembered.snapshot
    return values[sent - 1 :]


def _expected(requested: RequestedSession) -> tuple[Subject | None, Remembered | None]:
    """Return which rows a session named when this process last read it, and what it remembers of them."""
    data = requested.expected
    if data is None or data.is_empty:
        return None, None
    subject = Subject(data.user_id, data.spotify_user_id)
    return subject, _cache().get(subject)


def _subject_of(contents: Any) -> Subject | None:
    user_id, spotify_user_id = contents.get("user_id"), contents.get("spotify_user_id")
    if user_id is None and spotify_user_id is None:
        return None
    return Subject(user_id, spotify_user_id)


def _cache() -> SnapshotCache:
    cache: SnapshotCache = current_app.extensions["snapshots"]
    return cache
