"""Authorizations in progress: their `state`, their PKCE verifier, and their result."""

import hashlib
import hmac
import logging
import secrets
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
import redis

from app.errors import SpotifyUnavailable
from app.infra.clock import utc_now
from app.infra.encryption import DecryptionError, TokenCipher
from app.infra.redis_cipher import RedisCipher, compare_and_set
from app.spotify.clients.accounts_bulkhead import Waiter
from app.spotify.session_connection import ConnectionRef
from app.web import sessions
from app.web.sessions.data import EMPTY_SESSION_SECONDS
from app.web.throttle import Throttle

log = logging.getLogger(__name__)

TTL_SECONDS = EMPTY_SESSION_SECONDS
RESULT_TTL_SECONDS = 60  # how long a duplicate callback can get the result
WAIT_SECONDS = 15.0  # for the callback that a duplicate waits for; its calls to Spotify take 14 s at most
# Within `TTL_SECONDS`, a session may have this many authorizations that have not ended, and an address this
# many that have not led to a connection. An office of 300 people behind one address needs two for each.
MAX_PER_SESSION, MAX_PER_ADDRESS = 30, 600
# How long a page that polls gets the same URL.
_SAME_URL_SECONDS = TTL_SECONDS // 2
_POLL_SECONDS = 0.05


class AuthorizationRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An authorization as Redis stores it.

    While a callback is being processed, the status is "taken", `attempt` identifies the callback, and
    `code_hash` is of its code.
    """

    session: str
    user_id: int | None
    verifier: bytes  # encrypted
    counter: str  # the throttle's key that it is counted under
    status: Literal["open", "taken", "ended"] = "open"
    attempt: str = ""
    code_hash: bytes = b""
    connection: ConnectionRef | None = None
    optional_scopes: tuple[str, ...] = ()  # requested in addition to SPOTIFY_SCOPES
    return_to: str | None = None  # the page of the app that the person returns to
    signs_in: bool = False  # the Spotify account signs a visitor in
    client_id: str | None = None  # of the person's own application; None for the deployment's


@dataclass(frozen=True)
class Authorization:
    """An authorization that the current session has started."""

    state: str = field(repr=False)
    verifier: str = field(repr=False)
    record: AuthorizationRecord = field(repr=False)


class AuthorizationStore:
    """Keeps each authorization under one key in Redis, named by a hash of its `state`.

    Unlike values in the session, those of two tabs cannot overwrite each other. Only the session and user
    that started an authorization can use it; attempts by others change nothing. The result is kept
    for a minute, for a browser that sends the callback twice and shows the second response. It takes the
    same code: someone who planted the session's cookie may know the state too.
    """

    def __init__(
        self,
        client: redis.Redis,
        redis_cipher: RedisCipher,
        token_cipher: TokenCipher,
        throttle: Throttle,
        secret_key: str,
    ) -> None:
        self._client = client
        self._redis_cipher = redis_cipher
        self._token_cipher = token_cipher
        self._throttle = throttle
        self._secret_key = secret_key.encode()

    def create(
        self,
        user_id: int | None,
        *,
        optional_scopes: tuple[str, ...] = (),
        return_to: str | None = None,
        signs_in: bool = False,
        client_id: str | None = None,
        state: str | None = None,
    ) -> Authorization:
        """Start an authorization for this session and user, with the application that has this client id.

        State and verifier have 256 random bits each (RFC 9700 sections 2.1 and 2.1.1). The verifier never
        leaves this server. With `state`, returns the authorization that another request of this session has
        started with it at the same moment, if there is one.

        Raises:
            TooManyAttempts: This session or address has too many that are unfinished.
        """
        state = state or secrets.token_urlsafe(32)
        key, session_key = _key(state), sessions.session_key()
        counter = self._throttle.reserve(
            "authorizations",
            key,
            session_key,
            limit=MAX_PER_ADDRESS,
            limit_per_caller=MAX_PER_SESSION,
            seconds=TTL_SECONDS,
        )
        verifier = secrets.token_urlsafe(32)
        record = AuthorizationRecord(
            session_key,
            user_id,
            self._token_cipher.encrypt(verifier, "verifier", key),
            counter,
            optional_scopes=optional_scopes,
            return_to=return_to,
            signs_in=signs_in,
            client_id=client_id,
        )
        authorization = Authorization(state, verifier, record)
        sessions.persist()
        if self._client.set(key, self._encrypt(authorization), ex=TTL_SECONDS, nx=True):
            return authorization
        return self.find(state, user_id) or authorization

    def get_or_create(
        self, user_id: int | None, optional_scopes: tuple[str, ...], client_id: str | None
    ) -> Authorization:
        """Return an open authorization with these parameters, the same one for five minutes.

        For pages that poll: Redis would keep a new authorization for every request, each for ten minutes. The
        state is derived from these and the time with our secret key, so nothing else has to remember it.

        Raises:
            TooManyAttempts: This session or address has too many that are unfinished.
        """
        period = int(utc_now().timestamp()) // _SAME_URL_SECONDS
        for number in range(MAX_PER_SESSION):
            parts = sessions.session_key(), user_id, client_id, period, number, *optional_scopes
            state = self._derived_state(*parts)
            authorization = self.find(state, user_id) or self.create(
                user_id, optional_scopes=optional_scopes, client_id=client_id, state=state
            )
            if authorization.record.status == "open":
                return authorization
        return self.create(user_id, optional_scopes=optional_scopes, client_id=client_id)

    def find(self, state: str, user_id: int | None) -> Authorization | None:
        """Return the authorization with this state, if this session and user started it."""
        key = _key(state)
        stored: Any = self._client.get(key)
        packed = self._redis_cipher.decrypt(key, stored) if stored is not None else None
        if packed is None:
            return None
        try:
            record = msgspec.msgpack.decode(packed, type=AuthorizationRecord)
            verifier = self._token_cipher.decrypt(record.verifier, "verifier", key)
        except (msgspec.MsgspecError, DecryptionError):
            return None
        if record.session != sessions.session_key() or record.user_id != user_id:
            return None
        return Authorization(state, verifier, record)

    def consume(self, authorization: Authorization, code: str | None) -> Authorization | None:
        """Begin to process the callback of an open authorization. Returns None if a duplicate was first.

        `code` is None in a callback with an error.

        Raises:
            redis.RedisError: Redis is not available. The authorization stays open if possible.
        """
        attempt = secrets.token_hex(8)
        consumed = _with(authorization, status="taken", attempt=attempt, code_hash=_hash(code))
        try:
            return consumed if self._replace(authorization, consumed) else None
        except redis.RedisError:
            with suppress(redis.RedisError):
                self._replace(consumed, authorization)  # only the reply may have been lost
            raise

    def reopen(self, consumed: Authorization) -> None:
        """Accept the callback once more, because its code has not been used."""
        with suppress(redis.RedisError):
            self._replace(consumed, _with(consumed, status="open", attempt="", code_hash=b""))

    def record_result(self, consumed: Authorization, connection: ConnectionRef | None) -> None:
        """Record that an authorization ended with this connection, or with none."""
        key, record = _key(consumed.state), consumed.record
        ended = _with(consumed, status="ended", connection=connection)
        # A failed one keeps its full TTL, so that `get_or_create` does not use its state again.
        ttl: dict[str, Any] = {"keepttl": True} if connection is None else {"ex": RESULT_TTL_SECONDS}
        try:
            self._client.set(key, self._encrypt(ended), xx=True, **ttl)
            self._throttle.release(record.counter, key, record.session, succeeded=connection is not None)
        except redis.RedisError as error:
            # The connection is stored; only a duplicate callback does not find it.
            log.warning("authorization_result_not_recorded", extra={"reason": type(error).__name__})

    def wait_for_result(
        self, state: str, code: str | None, user_id: int | None, waiter: Waiter
    ) -> ConnectionRef | None:
        """Wait for the connection that a duplicate of this callback, with the same code, made or is making.

        Raises:
            SpotifyUnavailable: The duplicate could not use its code, or too many threads are waiting.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            authorization = self.find(state, user_id)
            if authorization is None:
                return None
            record = authorization.record
            if record.status == "open":
                raise SpotifyUnavailable(retry_after=1)
            if record.code_hash != _hash(code):
                return None
            if record.status == "ended" or time.monotonic() > deadline:
                return record.connection
            waiter.require_capacity()
            time.sleep(_POLL_SECONDS)

    def _derived_state(self, *parts: object) -> str:
        text = "\0".join(("authorization", *map(str, parts)))
        digest = hmac.new(self._secret_key, text.encode(), hashlib.sha256).digest()
        return urlsafe_b64encode(digest).rstrip(b"=").decode()

    def _replace(self, old: Authorization, new: Authorization) -> bool:
        return compare_and_set(self._client, _key(old.state), self._encrypt(old), self._encrypt(new))

    def _encrypt(self, authorization: Authorization) -> bytes:
        packed = msgspec.msgpack.encode(authorization.record)
        return self._redis_cipher.encrypt(_key(authorization.state), packed)


def _with(authorization: Authorization, **changes: Any) -> Authorization:
    return replace(authorization, record=msgspec.structs.replace(authorization.record, **changes))


def _hash(code: str | None) -> bytes:
    return b"" if code is None else hashlib.sha256(code.encode()).digest()


def _key(state: str) -> str:
    return f"authorization:{hashlib.sha256(state.encode()).hexdigest()}"
