"""The authorization flow behind `GET /api/spotify/authorize`: what each visit means, in order."""

import logging
import math
import time
from dataclasses import dataclass

from flask import session

from app import sessions
from app.auth.guard import current_user
from app.models import GrantState, SpotifyUser
from app.parts import parts
from app.problems import (
    NotSignedIn,
    Problem,
    SpotifyAccessDenied,
    SpotifyMisconfigured,
    SpotifyNotConnected,
    SpotifyRateLimited,
    SpotifyStateMismatch,
    SpotifyUnavailable,
)
from app.spotify import breaker, links, pending, tokens
from app.spotify.accounts import InvalidGrant, Misconfigured, RateLimited, SpotifyError
from app.spotify.refresh import GrantEnded

log = logging.getLogger(__name__)

_NOT_ON_ALLOWLIST = (
    "Spotify refuses this application or this person. If the application is in development mode, "
    "its owner has to add the person to the allowlist in Spotify's developer dashboard."
)


@dataclass(frozen=True)
class Connected:
    link: SpotifyUser


@dataclass(frozen=True)
class AuthorizationRequired:
    authorize_url: str
    grant_ended: bool


def visit(
    *, code: str | None, error: str | None, state: str | None, again: bool = False
) -> Connected | AuthorizationRequired:
    """Answer one visit.

    A callback that belongs to this session comes first, so that a connected person can authorize
    again. One that does not belong changes nothing: a living link is still a living link. `again`
    begins a new authorization while the link lives, whose grant goes on until the new one is there.

    Raises:
        SpotifyAccessDenied, SpotifyStateMismatch, SpotifyAccountInUse, SpotifyAccountMismatch,
        SpotifyUnavailable, SpotifyRateLimited, SpotifyMisconfigured
        NotSignedIn: the user has signed out while Spotify was asked.
    """
    user = current_user()
    user_id = user.id if user else None
    is_callback = code is not None or error is not None
    joined = False
    if is_callback and state:
        if (wait := parts().gate.wait()) > 0:
            raise SpotifyRateLimited(retry_after=math.ceil(wait))  # and the code stays good for then
        verifier = pending.spend(state, user_id)
        if verifier is not None:
            return Connected(_come_back(code if error is None else None, state, verifier, user_id))
        joined = _join_twin(state, user_id)

    link, grant_ended = None, False
    if is_callback or not again:
        try:
            link = _living_link()
        except GrantEnded:
            grant_ended = True
    if link is not None:
        if is_callback and not joined:
            note_refusal(SpotifyStateMismatch())
        return Connected(link)
    if is_callback:
        raise SpotifyStateMismatch
    if user is None and session.get("user_id") is not None:
        sessions.renew()  # a session that has ended is not a visitor's; a new one is
    return AuthorizationRequired(pending.begin(user_id, ask_again=again), grant_ended)


def note_refusal(problem: Problem) -> None:
    """Record that a callback was refused, and why."""
    log.info("spotify_refused", extra={"reason": problem.slug})


def _living_link() -> SpotifyUser | None:
    """The link that this request may use, its token refreshed if need be.

    Raises:
        GrantEnded, SpotifyUnavailable, SpotifyMisconfigured
    """
    link = links.current_link()
    if link is None:
        return None
    if link.token.state == GrantState.REAUTHORIZATION_REQUIRED:
        raise GrantEnded
    try:
        tokens.access_token_for(link.id)
    except SpotifyNotConnected:
        return None  # disconnected elsewhere, this very moment
    if session.get("spotify_user_id") != link.id:
        session["spotify_user_id"] = link.id
    links.note_use(link)
    return links.look_again()


def _come_back(code: str | None, state: str, verifier: str, user_id: int | None) -> SpotifyUser:
    """Finish an authorization of this session's, and let an equal callback know how."""
    binding, link_id = sessions.binding(), None
    try:
        if code is None:
            raise SpotifyAccessDenied("Spotify was not connected, because access was not given.")
        link = _connect(code, verifier, user_id)
        if user_id is None and not sessions.move():
            raise SpotifyStateMismatch  # the visitor has left this very moment
        link_id = link.id
    finally:
        pending.settle(state, binding, user_id, link_id)
    session["spotify_user_id"] = link.id
    links.look_again()
    log.info("spotify_connected", extra={"link": link.id})
    return link


def _join_twin(state: str, user_id: int | None) -> bool:
    """Take over the link that an equal callback has made: a double click, a reload, a prefetch.

    Returns whether there was one.

    The browser shows one answer of the two, which may be this one; so a visitor, whose session the
    other has moved, gets a session of its own.
    """
    link_id = pending.twins_link(state, user_id)
    if link_id is None:
        return False
    if user_id is None:
        sessions.renew()
    session["spotify_user_id"] = link_id
    links.look_again()
    return True


def _connect(code: str, verifier: str, user_id: int | None) -> SpotifyUser:
    """Turn the code into a stored grant. Nothing is stored before all of it is known."""
    asked = time.monotonic()
    try:
        grant = parts().accounts.exchange(code, verifier=verifier)
        breaker.client_accepted()
        profile = parts().webapi.me(grant.access_token)
    except InvalidGrant:
        raise SpotifyAccessDenied("Spotify did not accept the authorization code. Start again.") from None
    except SpotifyError as error:
        raise as_problem(error) from None
    if not sessions.is_there():
        # Who has left while Spotify was asked must not be linked any more, nor leave a link to nobody.
        raise SpotifyStateMismatch if user_id is None else NotSignedIn
    return links.store_grant(profile, grant, user_id=user_id, asked=asked)


def as_problem(error: SpotifyError) -> Problem:
    """What a caller is told when Spotify fails us."""
    if isinstance(error, RateLimited):
        return SpotifyRateLimited(retry_after=error.retry_after)
    if isinstance(error, Misconfigured):
        return SpotifyMisconfigured(_NOT_ON_ALLOWLIST if str(error) == "refused_by_web_api" else None)
    return SpotifyUnavailable(retry_after=error.retry_after)
