"""The authorization flow behind `GET /api/spotify/authorize`: what each visit means."""

import logging
import math
import time
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
from app.web import csrf, sessions
from app.web.access import current_user
from app.web.client_address import client_network
from app.web.problems import problem_type

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
class Callback:
    """What Spotify added to the redirect URI: a code or an error, and our state."""

    code: str | None
    error: str | None
    state: str | None


@dataclass(frozen=True)
class Connected:
    link: SpotifyUser


@dataclass(frozen=True)
class AuthorizationRequired:
    authorize_url: str
    grant_ended: bool


def authorize(callback: Callback | None, *, again: bool = False) -> Connected | AuthorizationRequired:
    """Answer one visit, which is a callback or none.

    | the visit                              | and then                                             |
    |----------------------------------------|------------------------------------------------------|
    | a callback of this session's           | finish the authorization, also while a connection lives |
    | another callback                       | change nothing: a living connection, or an error     |
    | none, a connection lives, not `again`  | that connection                                      |
    | none otherwise                         | start an authorization                               |

    Raises:
        SpotifyAccessDenied, SpotifyStateMismatch, SpotifyAccountInUse, SpotifyAccountMismatch,
        SpotifyUnavailable, SpotifyRateLimited, SpotifyMisconfigured, TooManyAttempts
        CrossSiteRequest: another site would have an authorization started.
        NotSignedIn: the user has signed out while Spotify was asked.
    """
    user = current_user()
    user_id = user.id if user else None
    if callback is not None:
        return Connected(_finish(callback, user_id) or _unaffected_link())
    link, grant_ended = None, False
    if not again:
        try:
            link = _living_link()
        except GrantEnded:
            grant_ended = True
    if link is not None:
        return Connected(link)
    csrf.require_same_site_start()
    if user is None and session.get("user_id") is not None:
        sessions.regenerate()  # a session that has ended is not a visitor's; a new one is
    return AuthorizationRequired(oauth_state.create(user_id), grant_ended)


def note_refusal(error: BacklineError) -> None:
    """Record that a callback was refused, and why."""
    log.info("spotify_refused", extra={"reason": problem_type(type(error)).slug})


def _unaffected_link() -> SpotifyUser:
    """The connection that this request may use although it came with somebody else's callback.

    Raises:
        SpotifyStateMismatch: there is none.
    """
    try:
        link = _living_link()
    except GrantEnded:
        link = None
    if link is None:
        raise SpotifyStateMismatch
    note_refusal(SpotifyStateMismatch())
    return link


def _living_link() -> SpotifyUser | None:
    """The link that this request may use, its token refreshed if need be.

    Raises:
        GrantEnded, SpotifyUnavailable, SpotifyMisconfigured
    """
    link = connections.current_connection()
    if link is None:
        return None
    if link.token.state == GrantState.REAUTHORIZATION_REQUIRED:
        raise GrantEnded
    try:
        service.access_token_for(link.id, grant_id=connections.required_grant())
    except SpotifyNotConnected:
        return None  # disconnected elsewhere, this very moment
    if session.get("spotify_user_id") != link.id:
        connections.attach_to_session(connections.reference(link))
    connections.touch(link)
    return connections.reload_current()


def _finish(callback: Callback, user_id: int | None) -> SpotifyUser | None:
    """Finish the authorization that the callback belongs to. None if it belongs to none of this session's.

    Its state is used up by the first callback of the session that it is bound to.
    """
    if callback.state is None:
        return None
    found = oauth_state.find(callback.state, user_id)
    if found is None:
        return None
    if found.status == "open":
        if callback.error is not None:
            if (taken := oauth_state.consume(callback.state, found)) is not None:
                oauth_state.record_result(callback.state, taken, None)
                raise _refusal(callback.error)
        elif (link := _connect(callback, found, user_id)) is not None:
            return link
    return _join_equal_callback(callback.state, user_id)


def _refusal(error: str) -> BacklineError:
    """What an error at Spotify's authorization endpoint means (RFC 6749 section 4.1.2.1)."""
    if error == "access_denied":
        return SpotifyAccessDenied("Spotify was not connected, because access was not given.")
    if error in _OUR_FAULT:
        log.error("authorization_misconfigured", extra={"reason": error})
        return SpotifyMisconfigured("Spotify refuses this server's authorization requests.")
    return SpotifyUnavailable("Spotify could not ask for consent. Start again in a moment.")


def _connect(callback: Callback, found: Authorization, user_id: int | None) -> SpotifyUser | None:
    """Exchange the code, and connect its account to this session. None if an equal callback was first."""
    state, asked = callback.state or "", time.monotonic()
    exchanged = _exchange(callback.code or "", state, found)
    if exchanged is None:
        return None
    taken, grant = exchanged
    connection = None
    try:
        link, connection = _store(grant, user_id, asked=asked)
    finally:
        oauth_state.record_result(state, taken, connection)
    connections.attach_to_session(connection)
    log.info("spotify_connected", extra={"link": link.id})
    return link


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
            raise domain_error(error) from None
    breaker.client_accepted()
    return taken, grant


def _store(grant: TokenResponse, user_id: int | None, *, asked: float) -> tuple[SpotifyUser, ConnectionRef]:
    """Store a new grant under the account that gave it. Nothing is stored before all of it is known.

    `asked` is when the code was sent (`time.monotonic`). Returns what `links.store_grant` does.
    """
    try:
        profile = services().web_api.me(grant.access_token)
    except SpotifyError as error:
        raise domain_error(error) from None
    # A person who has left in the meantime must not be connected, nor leave a connection behind that is
    # out of reach. A visitor's session gets a new id, so that one planted earlier does not lead to it.
    if user_id is None and not sessions.rotate_id():
        raise SpotifyStateMismatch
    if user_id is not None and not sessions.exists():
        raise NotSignedIn
    return connections.store_grant(profile, grant, user_id=user_id, asked=asked)


def _join_equal_callback(state: str, user_id: int | None) -> SpotifyUser | None:
    """Take over the connection that an equal callback has made: a double click, or a reload.

    The browser shows one response of the two, which may be this one; so a visitor, whose session the
    other callback has moved, gets a new session.
    """
    with services().accounts_bulkhead.waiting() as waiter:
        connection = oauth_state.wait_for_result(state, user_id, waiter)
    if connection is None:
        return None
    if user_id is None:
        sessions.regenerate()
    connections.attach_to_session(connection)
    try:
        return _living_link()
    except GrantEnded:
        return None


def domain_error(error: SpotifyError) -> BacklineError:
    """What a caller is told when Spotify fails us."""
    if isinstance(error, InvalidGrant):
        return SpotifyAccessDenied("Spotify did not accept the authorization code. Start again.")
    if isinstance(error, RateLimited):
        return SpotifyRateLimited(retry_after=error.retry_after)
    if isinstance(error, Misconfigured):
        log.error("authorization_misconfigured", extra={"reason": str(error)})
        return SpotifyMisconfigured(_NOT_ON_ALLOWLIST if str(error) == "refused_by_web_api" else None)
    return SpotifyUnavailable(retry_after=error.retry_after)
