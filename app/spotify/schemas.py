"""The queries and responses of `/api/spotify`."""

from typing import Any, cast

import marshmallow as ma
from webargs.multidictproxy import MultiDictProxy
from werkzeug.datastructures import MultiDict

from app.models import GrantState
from app.models.snapshots import Connection
from app.spotify.oauth.request import SIGN_IN, AuthorizeRequest
from app.web.api import Timestamp
from app.web.validation import Flag, Schema


class SpotifyOut(ma.Schema):
    """A connection. Without one, only `status` is present."""

    status = ma.fields.String(
        required=True,
        metadata={"enum": ["not_connected", "connected", "suspect", "reauthorization_required"]},
    )
    spotify_id = ma.fields.String()
    account_id = ma.fields.String(allow_none=True)
    display_name = ma.fields.String(allow_none=True)
    image_url = ma.fields.String(allow_none=True)
    scopes = ma.fields.List(ma.fields.String())
    authorized_at = Timestamp(allow_none=True)  # null if the connection was imported without it
    reauthorize_by = Timestamp(allow_none=True)
    access_token_expires_at = Timestamp()
    last_refreshed_at = Timestamp(allow_none=True)
    signs_in = ma.fields.Boolean(
        metadata={"description": "True if the owner can sign in with it. Otherwise not present"}
    )


def describe(spotify_user: Connection | None, *, is_usable: bool = True) -> dict[str, Any]:
    """Return a connection as the API shows it.

    It is not usable if it waits for the application of this server (`Applications.can_use`). Then the person
    has to connect again.
    """
    if spotify_user is None:
        return {"status": "not_connected"}
    token = spotify_user.token
    signs_in = {"signs_in": True} if spotify_user.sign_in_since is not None else {}
    state = token.state if is_usable else GrantState.REAUTHORIZATION_REQUIRED
    return signs_in | {
        "status": "connected" if state == GrantState.ACTIVE else state,
        "spotify_id": spotify_user.spotify_id,
        "account_id": spotify_user.account_id,
        "display_name": spotify_user.display_name,
        "image_url": spotify_user.image_url,
        "scopes": token.scopes,
        "authorized_at": None if token.is_undated else token.authorized_at,
        "reauthorize_by": token.reauthorize_by,
        "access_token_expires_at": token.expires_at,
        "last_refreshed_at": token.refreshed_at,
    }


class AuthorizeQuery(Schema):
    """Parameters that Spotify adds to the redirect URI, or that the app sends."""

    EMPTY = AuthorizeRequest()  # what an empty query is loaded as

    reauthorize = Flag(
        metadata={"description": "Ask for a new consent, for another six months, before the old one ends."}
    )
    scope = ma.fields.String(
        metadata={
            "description": (
                "Permissions that are needed now, separated by spaces, from `SPOTIFY_OPTIONAL_SCOPES`. They "
                "are requested in addition to those that were granted before."
            ),
            "example": "user-library-modify",
        }
    )
    return_to = ma.fields.String(
        metadata={
            "description": (
                "The page of the app to return to: a path on the origin of `FRONTEND_URL`, with or without a "
                "query. Parameters named `spotify`, `code`, `state`, or `error` are dropped from it."
            ),
            "example": "/playlists?sort=name",
        }
    )
    intent = ma.fields.String(
        metadata={
            "enum": [SIGN_IN],
            "description": (
                "Sign in with Spotify, or create an account without a password. Only if `SPOTIFY_SIGN_IN` is "
                "on. Someone who is signed in connects as without it."
            ),
        }
    )
    code = ma.fields.String()
    error = ma.fields.String()
    state = ma.fields.String()

    @ma.post_load(pass_original=True)
    def to_request(self, loaded: dict[str, Any], query: MultiDictProxy, **options: Any) -> AuthorizeRequest:
        """Convert the query to the argument of `AuthorizationFlow.authorize`."""
        given = cast("MultiDict[str, str]", query.data)
        values = {name: given.getlist(name) for name in self.fields}
        return AuthorizeRequest(
            **{name: _first(values[name]) for name in ("code", "error", "state", "return_to", "intent")},
            scopes=tuple(dict.fromkeys((_first(values["scope"]) or "").split())),
            reauthorize=loaded.get("reauthorize", False),
            repeated=tuple(name for name, found in values.items() if len(found) > 1),
        )


def _first(values: list[str]) -> str | None:
    """Return the first value that is not empty."""
    return next(filter(None, values), None)


class AuthorizeOut(ma.Schema):
    """A connection, or where to send the person to connect."""

    status = ma.fields.String(required=True, metadata={"enum": ["connected", "authorization_required"]})
    spotify = ma.fields.Nested(SpotifyOut)
    authorize_url = ma.fields.String(metadata={"format": "uri"})
    reason = ma.fields.String(metadata={"enum": ["reauthorization_required"]})
    return_to = ma.fields.String(metadata={"description": "The page of the app that was asked for"})


class TokenOut(ma.Schema):
    """An access token."""

    access_token = ma.fields.String(required=True)
    token_type = ma.fields.String(required=True)
    expires_in = ma.fields.Integer(required=True)
    expires_at = Timestamp(required=True)
    scope = ma.fields.String(required=True)


# For the OpenAPI document: the rest of the path after `/api/spotify/v1/`.
WEB_API_PATH = {
    "in": "path",
    "name": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "A path of the Web API, such as `me/player` or `playlists/{id}/items`.",
    "example": "me/player",
}
