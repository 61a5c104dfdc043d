"""Routes under `/api/spotify`: connecting, the playback token, and the gateway to the Web API."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from flask import request
from werkzeug.wrappers import Response

from app.errors import (
    InsufficientScope,
    InvalidCredentials,
    LastWayIn,
    NotSignedIn,
    SpotifyAccessDenied,
    SpotifyAccountInUse,
    SpotifyAccountMismatch,
    SpotifyAppRefused,
    SpotifyAppRequired,
    SpotifyMisconfigured,
    SpotifyNotConnected,
    SpotifyOutcomeUnknown,
    SpotifyRateLimited,
    SpotifyReauthorizationRequired,
    SpotifyStateMismatch,
    SpotifyUnavailable,
    SpotifyUserNotRegistered,
    TooManyAttempts,
    ValidationError,
)
from app.infra.clock import rfc3339
from app.models import Right
from app.models.snapshots import ConnectionSnapshot, Snapshot
from app.services import services
from app.spotify import connections, gateway_http, oauth_http
from app.spotify.oauth.request import AuthorizeRequest
from app.spotify.schemas import WEB_API_PATH, AuthorizeOut, AuthorizeQuery, SpotifyOut, TokenOut, describe
from app.spotify.session_connection import current_connection, required_grant
from app.spotify.tokens.refresh import GrantEnded
from app.spotify.tokens.service import PLAYBACK_LEAD
from app.web import identity
from app.web.access import accepts_bearer, has_right, public, require_right
from app.web.api import Blueprint, encode_json, json_response
from app.web.problems import (
    CrossSiteRequest,
    MalformedRequest,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
)

log = logging.getLogger(__name__)

WEB_API_METHODS = ["GET", "POST", "PUT", "DELETE"]

blueprint = Blueprint("spotify", __name__, description="The connection to Spotify")

_SPOTIFY = SpotifyOut()


@blueprint.get("/api/spotify/authorize")
@public
@identity.loads_session
@blueprint.arguments(AuthorizeQuery, location="query")
@blueprint.response(200, AuthorizeOut)
@blueprint.alt_response(302, description="In a browser: to Spotify, to ask for consent", success=True)
@blueprint.alt_response(
    303, description="In a browser that returns from Spotify: to FRONTEND_URL, with ?spotify=…", success=True
)
@blueprint.problems(
    SpotifyStateMismatch,
    SpotifyAccessDenied,
    NotSignedIn,
    InvalidCredentials,
    SpotifyAccountInUse,
    SpotifyAccountMismatch,
    SpotifyAppRequired,
    SpotifyAppRefused,
    SpotifyUserNotRegistered,
    ValidationError,
    SpotifyRateLimited,
    SpotifyUnavailable,
    SpotifyMisconfigured,
    CrossSiteRequest,
    TooManyAttempts,
)
def authorize(query: AuthorizeRequest) -> dict[str, Any] | Response:
    """Connect Spotify, or complete a connection.

    Returns the connection if there is one. Otherwise, with `reauthorize`, or with a `scope` that has not been
    granted, returns the URL at Spotify to send the person to. When Spotify sends them back with `code` and
    `state`, or `error`, pass those on here. Only a page of the app can start this, not a link on another
    site.
    """
    return oauth_http.respond(services().authorization_flow, services().config, query)


@blueprint.get("/api/spotify")
@public
@accepts_bearer(Right.SPOTIFY_READ)
@blueprint.response(200, SpotifyOut)
def get() -> Response:
    """Return whether Spotify is connected, as whom, and until when."""
    connection = current_connection()
    if connection is None:
        return json_response(encode_json(_SPOTIFY, describe(None)))
    is_usable = services().applications.can_use(connection.token)
    return json_response(
        identity.remembered_body(
            "spotify", lambda: encode_json(_SPOTIFY, describe(connection, is_usable=is_usable))
        )
    )


@blueprint.delete("/api/spotify")
@public
@blueprint.response(204)
@blueprint.problems(LastWayIn)
def disconnect() -> None:
    """Disconnect Spotify, and delete its tokens and personal data.

    A visitor cannot delete a connection that belongs to a user: their session only stops using it. A user
    without a password or a verified email address could no longer sign in (409 `last-way-in`). Afterwards,
    signing in with this Spotify account creates another account.
    """
    services().connections.disconnect()


@blueprint.get("/api/spotify/token")
@public
@blueprint.response(200, TokenOut)
@blueprint.problems(
    InsufficientScope,
    NotFound,
    SpotifyNotConnected,
    SpotifyReauthorizationRequired,
    SpotifyAppRequired,
    SpotifyAppRefused,
    SpotifyUnavailable,
    SpotifyMisconfigured,
)
def playback_token() -> Response:
    """Return a short-lived access token for the Web Playback SDK.

    This requires the scope `streaming`. Do not store the token: ask for a new one. It has all the scopes
    that were granted, because Spotify cannot limit a token to playback. In production, this route is
    available only with `PLAYBACK_TOKEN_ENABLED=true`.
    """
    if not services().config.playback_token_enabled:
        raise NotFound("PLAYBACK_TOKEN_ENABLED is off on this server.")
    connection = _require_connection()
    with _offering_consent():
        if "streaming" not in connection.token.scopes:
            detail = "The Web Playback SDK needs the scope 'streaming'."
            raise InsufficientScope(detail, missing_scopes=["streaming"])
        token = services().tokens.access_token_for(
            connection.id,
            PLAYBACK_LEAD,
            wait_if_valid=1,
            grant_id=required_grant(),
            known=connection.token,
        )
    log.info("playback_token_issued", extra={"spotify_user_id": connection.id})
    issued = {
        "access_token": token.access_token,
        "token_type": "Bearer",
        "expires_in": token.expires_in,
        "expires_at": rfc3339(token.expires_at),
        "scope": token.scope,
    }
    return json_response(msgspec.json.encode(issued))


@blueprint.route(
    "/v1/<path:path>",
    methods=WEB_API_METHODS,
    parameters=[WEB_API_PATH],
    endpoint="drop_in_web_api",  # only bearer tokens (app/web/bearer.py)
)
@blueprint.route("/api/spotify/v1/<path:path>", methods=WEB_API_METHODS, parameters=[WEB_API_PATH])
@public
@accepts_bearer(Right.SPOTIFY_READ, to_write=Right.SPOTIFY_WRITE)
@identity.loads_session
@blueprint.response(200, description="Spotify's response, with any status and media type")
@blueprint.problems(
    MalformedRequest,
    InsufficientScope,
    SpotifyNotConnected,
    SpotifyReauthorizationRequired,
    SpotifyAppRequired,
    SpotifyAppRefused,
    SpotifyOutcomeUnknown,
    PayloadTooLarge,
    UnsupportedMediaType,
    SpotifyRateLimited,
    SpotifyUnavailable,
    SpotifyMisconfigured,
)
def web_api(path: str) -> Response:
    """Call Spotify's Web API, https://api.spotify.com/v1/, on the person's behalf.

    Passes on path, query, and body with a valid access token, and returns Spotify's response. `X-Cache`
    says whether the response was fetched for this request (`miss`), for another one at the same time
    (`shared`), or moments ago (`hit`). `Age` is its age in seconds. Links in JSON lead back here.

    `/v1/` is for libraries with a fixed path, and accepts only bearer tokens.
    """
    gateway = services().gateway
    current = request._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    links = gateway_http.links_for(current, services().config)
    call = gateway_http.read_call(current, path, links)
    with gateway.prepare(call) as prepared:
        prepared.receive(identity.load(lambda snapshot: prepared.commands_for(_usable(snapshot))))
        require_right()
        connection = _require_connection()
        with _offering_consent():
            return gateway_http.forward(gateway, prepared, connection, required_grant(), links)


def _usable(snapshot: Snapshot) -> ConnectionSnapshot | None:
    """Return the connection that this request will probably use."""
    return snapshot.connection if has_right(snapshot.personal_token) else None


def _require_connection() -> ConnectionSnapshot:
    """Return the connection that this request may use, and record that it is in use.

    Raises:
        SpotifyNotConnected: There is none.
    """
    connection = current_connection()
    if connection is None:
        raise SpotifyNotConnected
    connections.touch(connection)
    return connection


@contextmanager
def _offering_consent() -> Iterator[None]:
    """Report what only a new consent changes, with the URL at which the person can give it.

    Raises:
        SpotifyReauthorizationRequired: The grant has ended, or this server has no application for it anymore.
        SpotifyAppRequired: The same, and the person has to register an application of their own first.
        InsufficientScope: The grant lacks a scope.
    """
    try:
        yield
    except (GrantEnded, SpotifyAppRequired):
        raise SpotifyReauthorizationRequired(authorize_url=_consent_url()) from None
    except InsufficientScope as error:
        missing: list[str] = error.members.setdefault("missing_scopes", [])  # type: ignore[assignment]
        config = services().config
        refused = {*missing} - {*config.spotify_scopes, *config.spotify_optional_scopes}
        if refused:
            names = ", ".join(sorted(refused))
            error.detail = (
                f"This server does not ask for {names}. Its operator can add it to SPOTIFY_OPTIONAL_SCOPES."
            )
        with suppress(TooManyAttempts, SpotifyAppRequired):  # the permission is still what is missing
            error.members["authorize_url"] = _consent_url(missing)
        raise


def _consent_url(scopes: Iterable[str] = ()) -> str:
    """Return the URL at which the person can consent again, or that of the app."""
    if identity.current_token() is not None:  # there is no session that an authorization could belong to
        return services().config.frontend_url
    return services().authorization_flow.reauthorization_url(scopes)
