"""What Spotify says after a person has consented."""

from dataclasses import dataclass

from app.spotify.clients.application import Application
from app.spotify.clients.profile import Profile
from app.spotify.clients.token_response import TokenResponse


@dataclass(frozen=True)
class Consent:
    """The tokens of a new grant, the Spotify account it is for, and the application that it was issued to.

    `requested_at` is when the code was sent to Spotify (`time.monotonic`).
    """

    profile: Profile
    tokens: TokenResponse
    requested_at: float
    application: Application
