"""Request and response bodies of the user routes."""

from typing import Any

import marshmallow as ma
import sqlalchemy as sa

from app.auth import password_policy
from app.auth.schemas import UserOut, current_password, email, new_password, username
from app.infra.clock import utc_now
from app.models import SpotifyUser, User, normalization
from app.spotify.schemas import SpotifyOut, describe
from app.user.export import PersonalData
from app.web.access import require_user
from app.web.api import Timestamp
from app.web.validation import GUESSABLE, PASSWORD_NEEDED, Schema


class KnownPassword(Schema):
    """The account's password."""

    password = current_password()


class PasswordIfNeeded(Schema):
    """The account's password, which is needed only if the sign-in was more than 15 minutes ago."""

    current_password = current_password(required=False)


class ProfileChange(Schema):
    """Changes to the user. Fields that are left out stay the same."""

    username = username()
    email = email()
    current_password = current_password()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"partial": True, **options})

    @ma.validates_schema(pass_original=True, skip_on_field_errors=False)
    def validate_current_password(self, data: dict[str, str], original: Any, **_options: object) -> None:
        """Require the password for a new address."""
        is_new = "email" in data and require_user().email not in normalization.spellings(data["email"])
        if is_new and "current_password" not in original:
            raise ma.ValidationError(PASSWORD_NEEDED, "current_password")


class PasswordChange(Schema):
    """The current password and a new one."""

    current_password = current_password()
    new_password = new_password()

    @ma.validates_schema(skip_on_field_errors=False)
    def validate_new_password(self, data: dict[str, str], **_options: object) -> None:
        """Compare the new password with the username and the email address."""
        user, password = require_user(), data.get("new_password")
        if password and password_policy.is_guessable(password, username=user.username, email=user.email):
            raise ma.ValidationError(GUESSABLE, "new_password")


class ListedSessionOut(ma.Schema):
    """A session of the user."""

    id = ma.fields.String(
        required=True, metadata={"description": "Identifies the session; it is not the cookie"}
    )
    current = ma.fields.Boolean(
        required=True, metadata={"description": "Whether this request belongs to the session"}
    )
    created_at = Timestamp(required=True)
    last_seen_at = Timestamp(required=True)
    ip = ma.fields.String(required=True, metadata={"description": "The address it was signed in from"})
    user_agent = ma.fields.String(required=True)


class SessionsOut(ma.Schema):
    """The sessions of the user."""

    items = ma.fields.List(ma.fields.Nested(ListedSessionOut), required=True)


class PreviousEmail(ma.Schema):
    """An address that the user can restore."""

    email = ma.fields.String(required=True)
    email_address = ma.fields.String(required=True, allow_none=True)
    expires_at = Timestamp(required=True)  # until when


class ExportedUser(UserOut):
    """The user, with everything that is stored about them."""

    email_address = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "As it was entered, for sending"}
    )
    email_verified_at = Timestamp(required=True, allow_none=True)
    pending_email_address = ma.fields.String(required=True, allow_none=True)
    previous_emails = ma.fields.List(ma.fields.Nested(PreviousEmail), required=True)
    disabled_at = Timestamp(required=True, allow_none=True)
    updated_at = Timestamp(required=True)


class ExportedSpotify(SpotifyOut):
    """The connection to Spotify, with everything that is stored about it except tokens."""

    product = ma.fields.String(required=True, allow_none=True)
    country = ma.fields.String(required=True, allow_none=True)
    connected_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)
    last_used_at = Timestamp(required=True)


class ExportedRefresh(ma.Schema):
    """An attempt to refresh a token."""

    started_at = Timestamp(required=True)
    finished_at = Timestamp(required=True, allow_none=True)
    outcome = ma.fields.String(required=True, allow_none=True)


class ExportOut(ma.Schema):
    """All personal data that is stored about a user."""

    exported_at = Timestamp(required=True)
    user = ma.fields.Nested(ExportedUser, required=True)
    sessions = ma.fields.List(ma.fields.Nested(ListedSessionOut), required=True)
    spotify = ma.fields.Nested(ExportedSpotify, required=True, allow_none=True)
    spotify_refreshes = ma.fields.List(ma.fields.Nested(ExportedRefresh), required=True)


def describe_export(data: PersonalData) -> dict[str, Any]:
    """Return personal data as the API shows it."""
    return {
        "exported_at": utc_now(),
        "user": _describe_user(data.user) | {"previous_emails": data.previous_emails},
        "sessions": data.sessions,
        "spotify": _describe_connection(data.spotify_user) if data.spotify_user is not None else None,
        "spotify_refreshes": data.refreshes,
    }


def _describe_user(user: User) -> dict[str, Any]:
    names = [*(column.key for column in sa.inspect(User).column_attrs), "email_verified"]
    return {name: getattr(user, name) for name in names}


def _describe_connection(spotify_user: SpotifyUser) -> dict[str, Any]:
    return describe(spotify_user) | {
        "product": spotify_user.product,
        "country": spotify_user.country,
        "connected_at": spotify_user.created_at,
        "updated_at": spotify_user.updated_at,
        "last_used_at": spotify_user.last_used_at,
    }
