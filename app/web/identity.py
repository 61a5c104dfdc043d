"""Who a request is from: its session or bearer token, and the rows of the account or connection behind it.

All of it comes in one round trip to Redis and, if the rows have changed, one statement.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from flask import Flask, current_app
from flask.globals import request_ctx

from app.errors import ServiceUnavailable
from app.infra.probes import reason_of
from app.infra.redis_round_trip import Command, round_trip
from app.models.snapshots import PersonalTokenSnapshot, Snapshot
from app.web import bearer
from app.web.bearer import BearerTokens, TokenState
from app.web.sessions.interface import RequestedSession, Session, SessionInterface
from app.web.snapshot_cache import SnapshotCache, Subject, TokenSubject, Versions, versions_from

log = logging.getLogger(__name__)

View = TypeVar("View", bound=Callable[..., object])
# Returns further commands for the round trip, given what the rows contained last time.
FurtherCommands = Callable[[Snapshot], Sequence[Command]]

# Probes and the documentation work without Redis.
_WITHOUT_SESSION = ("/api/docs", "/api/openapi")


class Identity:
    """What one request has read so far."""

    __slots__ = ("snapshot", "subject", "token_state", "versions")

    def __init__(self) -> None:
        self.versions = Versions()
        self.token_state = TokenState.MISSING
        # That of `snapshot`, once it has been read.
        self.subject: Subject | TokenSubject | None = None
        self.snapshot: Snapshot | None = None


def loads_session(view: View) -> View:
    """Mark a view that calls `load` itself. For others, it is called before they run."""
    view.loads_session = True  # type: ignore[attr-defined]
    return view


def init_app(app: Flask, client: redis.Redis, tokens: BearerTokens) -> None:
    """Load the session, or look up the bearer token, of every API request that a view will handle."""
    app.extensions["snapshots"] = SnapshotCache(client)
    app.extensions["bearer_tokens"] = tokens
    endpoints: dict[str, bool] = {}  # which need a session before the view runs

    @app.before_request
    def load_session() -> None:
        request = request_ctx.request
        rule = request.url_rule
        if rule is None or request.method == "OPTIONS":
            return
        needs_session = endpoints.get(rule.endpoint)
        if needs_session is None:
            needs_session = endpoints[rule.endpoint] = (
                rule.rule.startswith("/api/")
                and not rule.rule.startswith(_WITHOUT_SESSION)
                and not getattr(app.view_functions[rule.endpoint], "loads_session", False)
            )
        if needs_session:
            load()


def load(further: FurtherCommands | None = None) -> list[Any] | None:
    """Load the request's session, or look up its bearer token. `app.web.access` rejects an invalid one.

    Returns the replies to the `further` commands, if everything that they were made from is still valid.
    A reply that is a `redis.ResponseError` is Redis' own.

    Raises:
        ServiceUnavailable: Redis is not available.
    """
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    current: Session = context._session  # noqa: SLF001 - `session` is a proxy, which takes time
    interface: SessionInterface = context.app.session_interface
    cache: SnapshotCache = context.app.extensions["snapshots"]
    try:
        if bearer.replaces_cookie(context.request):
            tokens: BearerTokens = context.app.extensions["bearer_tokens"]
            return _look_up(current, interface.client, cache, tokens.subject(context.request), further)
        current.accessed = True  # every response depends on the cookie
        requested = interface.requested(context.request)
        return _load(current, interface, cache, requested, further) if requested is not None else None
    except redis.RedisError as error:
        log.error("sessions_unavailable", extra={"reason": reason_of(error)})
        raise ServiceUnavailable from error


def current_session() -> Session:
    """Return the session of this request, without the proxy."""
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    current: Session = context._session  # noqa: SLF001
    return current


def current_token() -> PersonalTokenSnapshot | None:
    """Return the valid bearer token that this request has presented."""
    identity: Identity | None = current_session().identity
    if identity is None or identity.snapshot is None:
        return None
    return identity.snapshot.personal_token


def token_state() -> TokenState:
    """Return what is known of this request's bearer token. It must have been looked up (`load`)."""
    return _identity_of(current_session()).token_state


def current_snapshot() -> Snapshot | None:
    """Return the rows of the account or the connection that this request's token or session names.

    The caller checks whether the session may use them. None if the session names none, or if it is gone.
    """
    current = current_session()
    if current_token() is not None:
        return _identity_of(current).snapshot
    subject = _subject_of(current)
    if subject is None:
        return None
    identity = _identity_of(current)
    if identity.subject is None or identity.subject.key != subject.key:
        cache: SnapshotCache = current_app.extensions["snapshots"]
        identity.snapshot = cache.read(subject, identity.versions)
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
    current_session().identity = None


def _load(
    current: Session,
    interface: SessionInterface,
    cache: SnapshotCache,
    requested: RequestedSession,
    further: FurtherCommands | None,
) -> list[Any] | None:
    expected = requested.expected
    subject = Subject(expected.user_id, expected.spotify_user_id) if expected is not None else None
    remembered = cache.get(subject) if subject is not None else None
    keys = list(remembered.labels) if remembered else subject.versions if subject else []
    commands: list[Command] = [interface.read_command(requested), *(("GET", key) for key in keys)]
    sent = len(commands)
    if further is not None and expected is not None and remembered is not None:
        commands += further(remembered.snapshot)
    began_at = time.monotonic()
    replies = round_trip(interface.client, commands)
    raw, *values = replies.values
    if isinstance(raw, redis.ResponseError):
        raise raw
    interface.open_stored(current, requested, raw)
    identity = current.identity = Identity()
    identity.versions = versions_from(keys, replies, values[: sent - 1], began_at)
    found = _subject_of(current)
    if subject is None or remembered is None or found is None or found.key != subject.key:
        return None
    if not identity.versions.confirm(remembered):
        return None
    identity.subject, identity.snapshot = found, remembered.snapshot
    return values[sent - 1 :]


def _look_up(
    current: Session,
    client: redis.Redis,
    cache: SnapshotCache,
    subject: TokenSubject | None,
    further: FurtherCommands | None,
) -> list[Any] | None:
    """Look up a bearer token. Without a `subject`, it is malformed."""
    identity = current.identity = Identity()
    if subject is None:
        identity.token_state = TokenState.MALFORMED
        return None
    remembered, snapshot, found = cache.get(subject), None, None
    if remembered is not None:
        keys = list(remembered.labels)
        commands: list[Command] = [("GET", key) for key in keys]
        if further is not None:
            commands += further(remembered.snapshot)
        began_at = time.monotonic()
        replies = round_trip(client, commands)
        identity.versions = versions_from(keys, replies, replies.values[: len(keys)], began_at)
        if identity.versions.confirm(remembered):
            snapshot, found = remembered.snapshot, replies.values[len(keys) :]
    if snapshot is None:
        snapshot = cache.read(subject, identity.versions)
    identity.token_state = _state_of(snapshot)
    if identity.token_state is TokenState.VALID:
        identity.subject, identity.snapshot = subject, snapshot
    return found


def _state_of(snapshot: Snapshot | None) -> TokenState:
    if snapshot is None or snapshot.personal_token is None or snapshot.user is None:
        return TokenState.UNKNOWN
    is_valid = snapshot.personal_token.is_valid_for(snapshot.user)
    return TokenState.VALID if is_valid else TokenState.ENDED


def _identity_of(current: Session) -> Identity:
    if current.identity is None:
        current.identity = Identity()
    identity: Identity = current.identity
    return identity


def _subject_of(current: Session) -> Subject | None:
    """Return the subject of a session. None for that of a visitor without a connection."""
    user_id, spotify_user_id = dict.get(current, "user_id"), dict.get(current, "spotify_user_id")
    return None if user_id is None and spotify_user_id is None else Subject(user_id, spotify_user_id)
