"""Authorizations in progress: what was agreed when a person was sent to Spotify, and how it ended.

Each has one key in Redis, named by a hash of its `state`. Keeping them out of the session means that
two tabs cannot overwrite each other's. Only the session that a state is bound to can use it; an attempt
by any other changes nothing. How it ended is kept for a minute, for a browser that sends the callback
twice and shows the second response.
"""

import hashlib
import hmac
import logging
import secrets
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any, Literal

import msgspec
import redis

from app.errors import SpotifyUnavailable
from app.infra.clock import utc_now
from app.infra.encryption import DecryptionError
from app.infra.redis_cipher import compare_and_set
from app.services import services
from app.spotify.clients.accounts_bulkhead import Waiter
from app.spotify.connections import ConnectionRef
from app.web import sessions
from app.web.session_data import VISIT_SECONDS

log = logging.getLogger(__name__)

TTL_SECONDS = VISIT_SECONDS
RESULT_SECONDS = 60  # how long an equal callback can ask for the connection that was made
WAIT_SECONDS = 15.0  # for an equal callback that is being processed; its calls to Spotify take 14 s at most
# Within `LIFE_SECONDS`: one session may have this many that have not ended, and one address this many
# that have not led to a connection. An office of 300 people behind one address needs two for each.
OF_ONE_SESSION, OF_ONE_ADDRESS = 30, 600
# How long a page that polls gets the same URL.
_SAME_URL_SECONDS = TTL_SECONDS // 2


class Authorization(msgspec.Struct, frozen=True, omit_defaults=True):
    """One authorization, as Redis holds it.

    `taken` says that a callback is being processed, and `attempt` which one. `room` is what it is counted
    in (`app.web.throttle`).
    """

    session: str
    user_id: int | None
    verifier: bytes  # of PKCE, sealed
    room: str
    status: Literal["open", "taken", "ended"] = "open"
    attempt: str = ""
    connection: ConnectionRef | None = None


def create(user_id: int | None) -> str:
    """Start an authorization for this session and user. Returns the URL at Spotify.

    `state` and verifier are 256 random bits each (RFC 9700 sections 2.1 and 2.1.1); the verifier
    never leaves this server.

    Raises:
        TooManyAttempts
    """
    state = secrets.token_urlsafe(32)
    return _url(state, _begin(state, user_id))


def current(user_id: int | None) -> str:
    """The URL of an authorization for this session and user, the same one for five minutes while it is open.

    For a page that asks every second: each new one would stay in Redis for ten minutes. So that no second
    key has to remember it, its state is derived from what is asked for, with our secret key.

    Raises:
        TooManyAttempts
    """
    period = int(utc_now().timestamp()) // _SAME_URL_SECONDS
    for number in range(OF_ONE_SESSION):
        state = _derived_state(sessions.session_key(), user_id, period, number)
        found = find(state, user_id) or _begin(state, user_id)
        if found.status == "open":
            return _url(state, found)
    return create(user_id)


def find(state: str, user_id: int | None) -> Authorization | None:
    """This session's and user's authorization with this state, if there is one."""
    raw: Any = services().redis.get(_key(state))
    packed = services().redis_cipher.decrypt(_key(state), raw) if raw is not None else None
    if packed is None:
        return None
    with suppress(msgspec.MsgspecError, DecryptionError):
        found = msgspec.msgpack.decode(packed, type=Authorization)
        verifier(state, found)  # raises if it cannot be opened
        if found.session == sessions.session_key() and found.user_id == user_id:
            return found
    return None


def consume(state: str, found: Authorization) -> Authorization | None:
    """Begin to process the callback of an open authorization. None if an equal callback was first."""
    taken = msgspec.structs.replace(found, status="taken", attempt=secrets.token_hex(8))
    try:
        return taken if _swap(state, found, taken) else None
    except redis.RedisError:
        with suppress(redis.RedisError):
            _swap(state, taken, found)  # only the reply may have been lost
        raise


def reopen(state: str, taken: Authorization) -> None:
    """Let the callback come again: its code has not been used."""
    with suppress(redis.RedisError):
        _swap(state, taken, msgspec.structs.replace(taken, status="open", attempt=""))


def record_result(state: str, taken: Authorization, connection: ConnectionRef | None) -> None:
    """Record how an authorization ended: with this connection, or without any."""
    ended = msgspec.structs.replace(taken, status="ended", connection=connection)
    try:
        # One that failed is kept to its end, so that `current` does not use its state a second time.
        life = {"keepttl": True} if connection is None else {"ex": RESULT_SECONDS}
        services().redis.set(_key(state), _encode(state, ended), xx=True, **life)
        services().throttle.release(taken.room, _key(state), taken.session, succeeded=connection is not None)
    except redis.RedisError as error:
        # What was connected stays connected; only an equal callback has to ask again.
        log.warning("authorization_not_settled", extra={"reason": type(error).__name__})


def wait_for_result(state: str, user_id: int | None, waiter: Waiter) -> ConnectionRef | None:
    """The connection that an equal callback of this session has made, or is making right now.

    Raises:
        SpotifyUnavailable
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = find(state, user_id)
        if found is None:
            return None
        if found.status == "open":
            raise SpotifyUnavailable(retry_after=1)  # the other callback could not use its code: try again
        if found.status == "ended" or time.monotonic() > deadline:
            return found.connection
        waiter.require_place()
        time.sleep(0.05)


def verifier(state: str, authorization: Authorization) -> str:
    """The PKCE verifier to finish it with."""
    return services().token_cipher.decrypt(authorization.verifier, "verifier", _key(state))


def _begin(state: str, user_id: int | None) -> Authorization:
    """Start an authorization with this state, or find the one that was started at the same moment."""
    key, binding = _key(state), sessions.session_key()
    room = services().throttle.reserve(
        "authorizations",
        key,
        binding,
        limit=OF_ONE_ADDRESS,
        limit_per_caller=OF_ONE_SESSION,
        seconds=TTL_SECONDS,
    )
    sealed = services().token_cipher.encrypt(secrets.token_urlsafe(32), "verifier", key)
    started = Authorization(binding, user_id, sealed, room)
    sessions.persist()
    if services().redis.set(key, _encode(state, started), ex=TTL_SECONDS, nx=True):
        return started
    return find(state, user_id) or started


def _url(state: str, authorization: Authorization) -> str:
    return services().accounts.authorize_url(state=state, verifier=verifier(state, authorization))


def _derived_state(*of: object) -> str:
    text = "\0".join(("authorization", *map(str, of)))
    digest = hmac.new(services().config.secret_key.encode(), text.encode(), hashlib.sha256).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _swap(state: str, old: Authorization, new: Authorization) -> bool:
    return compare_and_set(services().redis, _key(state), _encode(state, old), _encode(state, new))


def _encode(state: str, authorization: Authorization) -> bytes:
    return services().redis_cipher.encrypt(_key(state), msgspec.msgpack.encode(authorization))


def _key(state: str) -> str:
    return f"authorization:{hashlib.sha256(state.encode()).hexdigest()}"
