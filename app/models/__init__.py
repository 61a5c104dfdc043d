"""The tables: columns, and rules that need no database session. `migrations/` creates the schema."""

from app.models.access_token import AccessToken, GrantState
from app.models.breaker import Breaker
from app.models.one_time_token import OneTimeToken, Purpose
from app.models.outgoing_mail import MailKind, OutgoingMail
from app.models.personal_access_token import PersonalAccessToken, Right
from app.models.spotify_app import AppState, SpotifyApp
from app.models.spotify_user import SpotifyUser
from app.models.token_refresh import TokenRefresh
from app.models.user import User

__all__ = [
    "AccessToken",
    "AppState",
    "Breaker",
    "GrantState",
    "MailKind",
    "OneTimeToken",
    "OutgoingMail",
    "PersonalAccessToken",
    "Purpose",
    "Right",
    "SpotifyApp",
    "SpotifyUser",
    "TokenRefresh",
    "User",
]
