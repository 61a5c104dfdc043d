"""Request and response bodies of `/api/spotify/app`."""

from typing import Any

import marshmallow as ma
from marshmallow import validate

from app.models import AppState, SpotifyApp
from app.models.spotify_app import MAX_CLIENT_ID_LENGTH
from app.spotify.clients.application import Application
from app.web.api import Timestamp
from app.web.validation import CLIENT_ID, CLIENT_SECRET, Schema, Text
from config import Config


def _letters_and_digits(error: str) -> validate.Regexp:
    return validate.Regexp(rf"[0-9A-Za-z]{{1,{MAX_CLIENT_ID_LENGTH}}}\Z", error=error)


class NewSpotifyApp(Schema):
    """An application from Spotify's dashboard."""

    client_id = Text(
        required=True,
        validate=_letters_and_digits(CLIENT_ID),
        metadata={"example": "clientIdFromTheDashboard"},
    )
    client_secret = Text(
        load_default=None,
        allow_none=True,
        load_only=True,
        validate=_letters_and_digits(CLIENT_SECRET),
        metadata={
            "description": "Without it, the application is used as a public client, with PKCE only.",
            "format": "password",
            "example": "clientSecretFromTheDashboard",
        },
    )


class SpotifyAppOut(ma.Schema):
    """The application at Spotify that the person connects with. Its secret is never shown."""

    client_id = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Null if one has to be registered first"},
    )
    own = ma.fields.Boolean(
        required=True,
        metadata={"description": "Whether the person has registered it. Otherwise, it is the server's"},
    )
    has_secret = ma.fields.Boolean(required=True)
    redirect_uri = ma.fields.String(
        required=True,
        metadata={"format": "uri", "description": "What the application must list in Spotify's dashboard"},
    )
    state = ma.fields.String(
        required=True,
        metadata={
            "enum": [state.value for state in AppState],
            "description": "`refused`: Spotify rejects it, because it was deleted or its secret is wrong",
        },
    )
    paused_until = Timestamp(required=True, allow_none=True)
    can_register = ma.fields.Boolean(
        required=True, metadata={"description": "Whether this server lets people register their own"}
    )


def describe_app(config: Config, deployment: Application | None, own: SpotifyApp | None) -> dict[str, Any]:
    """Return the application that a person connects with as the API shows it."""
    shared = None if config.spotify_apps == "own" else deployment
    return {
        "client_id": own.client_id if own else shared and shared.client_id,
        "own": own is not None,
        "has_secret": own.client_secret is not None if own else shared is not None,
        "redirect_uri": config.spotify_redirect_uri,
        "state": own.state if own else AppState.ACTIVE,
        "paused_until": own.paused_until if own else None,
        "can_register": config.spotify_apps != "deployment",
    }
