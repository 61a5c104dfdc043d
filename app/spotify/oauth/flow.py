"""The authorization code flow behind `GET /api/spotify/authorize`."""

import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from flask import session

from app.errors import (
    BacklineError,
    NotSignedIn,
    SpotifyAccessDenied,
    SpotifyMisconfigured,
    SpotifyNotConnected,
    SpotifyRateLimited,
    SpotifyStateMismatch,
    SpotifyUnavailable,
)
from app.infra import database
from app.models import GrantState, SpotifyUser
from app.services import services
from app.spotify import connections
from app.spotify.clients.accounts import (
    InvalidGrant,
    Misconfigured,
    NotSent,
    RateLimited,
    SpotifyError,
    TokenResponse,
)
from app.spotify.clients.rate_limit import ME
from app.spotify.connections import ConnectionRef
from app.spotify.oauth import state as oauth_state
from app.spotify.oauth.state import Authorization
from app.spotify.tokens import breaker, service
from app.spotify.tokens.refresh import GrantEnded
from app.web import sessions
from app.web.access import current_user
from app.web.client_address import client_network

log = logging.getLogger(__name__)

# Codes that one address may send us in ten minutes: each is a call to Spotify.
EXCHANGES_OF_ONE_ADDRESS, EXCHANGES_SECONDS = 1000, 600
_NOT_ON_ALLOWLIST = (
    "Spotify refuses this application or this person. If the application is in development mode, "
    "its owner has to add the person to the allowlist in Spotify's developer dashboard."
)
# RFC 6749 section 4.1.2.1: what the authorization endpoint refuses because of the request, which is ours.
# `access_denied` is the person's decision; everything else is Spotify's trouble.
_OUR_FAULT = ("invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope")


@dataclass(frozen=True)
class AuthorizeRequest:
    """The parameters of one request. An empty one counts as absent (RFC 6749 section 3.1)."""

    code: str | None = None
    error: str | None = None
    state: str | None = None
    reauthorize: bool = False
    repeated: tuple[str, ...] = ()  # names of parameters with more than one value

    @property
    def is_callback(self) -> bool:
        """Whether Spotify, or somebody who imitates it, sent the person here."""
        return self.code is not None or self.error is not None


@dataclass(frozen=True)
class Connected:
    """The session uses this connection. `callback_ignored` if it came with a callback that is not its own."""

    spotify_user: SpotifyUser
    callback_ignored: bool = False


@dataclass(frozen=True)
class AuthorizationRequired:
    """The person has to consent at Spotify. `start` begins that."""

    grant_ended: bool = False


def authorize(request: AuthorizeRequest) -> Connected | AuthorizationRequired:
    """Decide what a request means.

    | The request                                   | The result                                        |
    |-----------------------------------------------|---------------------------------------------------|
    | callback of an authorization of this session  | completes it, even if there is a connection       |
    | any other callback, with a connection         | that connection; the callback is ignored          |
    | any other callback, without a connection      | SpotifyStateMismatch                              |
    | no callback, `reauthorize`                    | AuthorizationRequired                             |
    | no callback, with a connection                | that connection                                   |
    | no callback, without one, or its grant ended  | AuthorizationRequired                             |

    Raises:
        SpotifyStateMismatch: see above, or the visitor's session ended while Spotify was asked.
        SpotifyAccessDenied: the person declined, or Spotify rejected the code.
        SpotifyAccountInUse: the Spotify account is connected to another user.
        SpotifyAccountMismatch: the user is connected to another Spotify account.
        NotSignedIn: the user signed out while Spotify was asked.
        SpotifyUnavailable: Spotify does not respond, or not usably.
        SpotifyRateLimited: Spotify wants no calls for a while.
        SpotifyMisconfigured: Spotify rejects this application.
        TooManyAttempts: this address has sent too many codes.
    """
    if request.is_callback:
        spotify_user = _complete_callback(request)
        return Connected(spotify_user) if spotify_user is not None else _ignore_callback()
    if request.reauthorize:
        return AuthorizationRequired()
    try:
        spotify_user = _working_connection()
    except GrantEnded:
        return AuthorizationRequired(grant_ended=True)
    return Connected(spotify_user) if spotify_user is not None else AuthorizationRequired()


def start() -> str:
    """Start an authorization. Returns the URL at Spotify to send the person to.

    Raises:
        TooManyAttempts: this session or address has too many that are unfinished.
    """
    user = current_user()
    if user is None and session.get("user_id") is not None:
        sessions.regenerate()  # a signed-in session that has ended must not become a visitor's
    return oauth_state.create(user.id if user else None)


def _ignore_callback() -> Connected:
    """Return the connection that this request may use although its callback is not this session's.

    Raises:
        SpotifyStateMismatch: there is none.
    """
    with suppress(GrantEnded):
        spotify_user = _working_connection()
        if spotify_user is not None:
            return Connected(spotify_user, callback_ignored=True)
    raise SpotifyStateMismatch


def _working_connection() -> SpotifyUser | None:
    """Return the connection that this request may use, its token refreshed if need be.

    Raises:
        GrantEnded: only a new consent helps.
        SpotifyUnavailable, SpotifyMisconfigured: the token could not be refreshed.
    """
    spotify_user = connections.current_connection()
    if spotify_user is None:
        return None
    if spotify_user.token.state == GrantState.REAUTHORIZATION_REQUIRED:
        raise GrantEnded
    try:
        service.access_token_for(spotify_user.id, grant_id=connections.required_grant())
    except SpotifyNotConnected:
        return None  # it was disconnected elsewhere at this moment
    if session.get("spotify_user_id") != spotify_user.id:
        connections.attach_to_session(connections.reference(spotify_user))
    connections.touch(spotify_user)
    connections.invalidate_current()  # the refresh has changed it
    return connections.current_connection()


def _complete_callback(request: AuthorizeRequest) -> SpotifyUser | None:
    """Complete the authorization that a callback belongs to. None if it is not one of this session's.

    The first callback of its own session consumes the state. A duplicate gets the first one's connection.
    """
    user = current_user()
    user_id = user.id if user else None
    if request.state is None:
        return None
    found = oauth_state.find(request.state, user_id)
    if found is None:
        return None
    spotify_user = None
    if found.status == "open":
        if request.error is not None:
            _reject(request.error, request.state, found)
        elif request.code is not None:
            spotify_user = _connect(request.code, request.state, found, user_id)
    return spotify_user or _reuse_duplicate(request.state, user_id)


def _reject(error: str, state: str, found: Authorization) -> None:
    """Consume the state of a callback with an error. Returns only if a duplicate did so first.

    Raises:
        SpotifyAccessDenied, SpotifyMisconfigured, SpotifyUnavailable: see `_authorization_error`.
    """
    taken = oauth_state.consume(state, found)
    if taken is not None:
        oauth_state.record_result(state, taken, None)
        raise _authorization_error(error)


def _authorization_error(error: str) -> BacklineError:
    """Map an error code of the authorization endpoint (RFC 6749 section 4.1.2.1)."""
    if error == "access_denied":
        return SpotifyAccessDenied("Spotify was not connected, because access was not given.")
    if error in _OUR_FAULT:
        log.error("authorization_misconfigured", extra={"reason": error})
        return SpotifyMisconfigured("Spotify refuses this server's authorization requests.")
    return SpotifyUnavailable("Spotify could not ask for consent. Start again in a moment.")


def _connect(code: str, state: str, found: Authorization, user_id: int | None) -> SpotifyUser | None:
    """Exchange the code, and connect its account to this session. None if a duplicate was first."""
    asked = time.monotonic()
    exchanged = _exchange(code, state, found)
    if exchanged is None:
        return None
    taken, grant = exchanged
    connection = None
    try:
        spotify_user, connection = _store(grant, user_id, asked=asked)
    finally:
        oauth_state.record_result(state, taken, connection)
    connections.attach_to_session(connection)
    log.info("spotify_connected", extra={"link": spotify_user.id})
    return spotify_user


def _exchange(code: str, state: str, found: Authorization) -> tuple[Authorization, TokenResponse] | None:
    """Use up the state, and trade the code for tokens. None if an equal callback was first.

    Whatever can be refused before that is, and a code that was surely not used can come again.
    """
    if (wait := services().rate_limiter.wait(ME)) > 0:
        raise SpotifyRateLimited(retry_after=math.ceil(wait))
    if services().web_api.is_away:
        raise SpotifyUnavailable
    database.read_db_now()  # raises while the database is away: the grant could not be stored
    services().throttle.hit(
        "exchanges", client_network(), limit=EXCHANGES_OF_ONE_ADDRESS, seconds=EXCHANGES_SECONDS
    )
    with services().accounts_bulkhead.exchanging():
        taken = oauth_state.consume(state, found)
        if taken is None:
            return None
        try:
            grant = services().accounts.exchange(code, verifier=oauth_state.verifier(state, taken))
        except SpotifyError as error:
            if isinstance(error, NotSent | RateLimited):
                oauth_state.reopen(state, taken)
            else:
                oauth_state.record_result(state, taken, None)
            raise _domain_error(error) from None
    breaker.client_accepted()
    return taken, grant


def _store(grant: TokenResponse, user_id: int | None, *, asked: float) -> tuple[SpotifyUser, ConnectionRef]:
    """Store a new grant under the account that gave it. Nothing is stored before all of it is known.

    `asked` is when the code was sent (`time.monotonic`). Returns what `links.store_grant` does.
    """
    try:
        profile = services().web_api.me(grant.access_token)
    except SpotifyError as error:
        raise _domain_error(error) from None
    # A person who has left in the meantime must not be connected, nor leave a connection behind that is
    # out of reach. A visitor's session gets a new id, so that one planted earlier does not lead to it.
    if user_id is None and not sessions.rotate_id():
        raise SpotifyStateMismatch
    if user_id is not None and not sessions.exists():
        raise NotSignedIn
    return connections.store_grant(profile, grant, user_id=user_id, asked=asked)


def _reuse_duplicate(state: str, user_id: int | None) -> SpotifyUser | None:
    """Use the connection that a duplicate of this callback has made, after a double click or a reload.

    The browser shows only one of the two responses, perhaps this one. The other callback changed the id of
    a visitor's session, so this response brings a new session.
    """
    with services().accounts_bulkhead.waiting() as waiter:
        connection = oauth_state.wait_for_result(state, user_id, waiter)
    if connection is None:
        return None
    if user_id is None:
        sessions.regenerate()
    connections.attach_to_session(connection)
    try:
        return _working_connection()
    except GrantEnded:
        return None


def _domain_error(error: SpotifyError) -> BacklineError:
    """What a caller is told when Spotify fails us."""
    if isinstance(error, InvalidGrant):
        return SpotifyAccessDenied("Spotify did not accept the authorization code. Start again.")
    if isinstance(error, RateLimited):
        return SpotifyRateLimited(retry_after=error.retry_after)
    if isinstance(error, Misconfigured):
        log.error("authorization_misconfigured", extra={"reason": str(error)})
        return SpotifyMisconfigured(_NOT_ON_ALLOWLIST if str(error) == "refused_by_web_api" else None)
    return SpotifyUnavailable(retry_after=error.retry_after)
