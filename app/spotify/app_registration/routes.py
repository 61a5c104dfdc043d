"""Routes under `/api/spotify/app`: the application at Spotify that a person connects with."""

from typing import Any

from app.errors import (
    LastWayIn,
    SpotifyAppNotAccepted,
    SpotifyAppsDisabled,
    SpotifyRateLimited,
    SpotifyUnavailable,
    TooManyAttempts,
)
from app.models import SpotifyApp
from app.services import services
from app.spotify.app_registration.schemas import NewSpotifyApp, SpotifyAppOut, describe_app
from app.spotify.applications.lookup import row_of_user
from app.web.access import login_required, require_user
from app.web.api import Blueprint
from app.web.client_address import client_network

blueprint = Blueprint("spotify_app", __name__, description="The user's own application at Spotify")

# Each is a call to Spotify. For one user, and for one address, which may have many accounts.
REGISTRATIONS_PER_HOUR, REGISTRATIONS_PER_HOUR_AND_ADDRESS = 30, 300


@blueprint.get("/api/spotify/app")
@login_required
@blueprint.response(200, SpotifyAppOut)
def get() -> dict[str, Any]:
    """Return the application that the signed-in user connects with, and what it must list."""
    return _describe(row_of_user(require_user().id))


@blueprint.put("/api/spotify/app")
@login_required
@blueprint.arguments(NewSpotifyApp)
@blueprint.response(200, SpotifyAppOut)
@blueprint.problems(
    SpotifyAppsDisabled,
    LastWayIn,
    SpotifyAppNotAccepted,
    SpotifyRateLimited,
    SpotifyUnavailable,
    TooManyAttempts,
)
def register(requested: dict[str, str | None]) -> dict[str, Any]:
    """Register the user's own application, or replace it.

    Spotify is asked whether the client ID and the secret are correct. A connection that was made with
    another client ID ends, so ask the person first. With the same client ID and a new secret, it continues.
    """
    user = require_user()
    throttle = services().throttle
    throttle.hit("spotify-apps", str(user.id), limit=REGISTRATIONS_PER_HOUR)
    throttle.hit("spotify-apps", client_network(), limit=REGISTRATIONS_PER_HOUR_AND_ADDRESS)
    client_id = requested["client_id"] or ""
    return _describe(services().app_registration.register(user, client_id, requested["client_secret"]))


@blueprint.delete("/api/spotify/app")
@login_required
@blueprint.response(204)
@blueprint.problems(LastWayIn)
def remove() -> None:
    """Remove the user's own application. The connection made with it ends."""
    services().app_registration.remove(require_user())


def _describe(own: SpotifyApp | None) -> dict[str, Any]:
    return describe_app(services().config, services().applications.deployment, own)
