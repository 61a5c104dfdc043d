"""Request and response bodies of the user routes."""

from typing import Any

import marshmallow as ma
import sqlalchemy as sa
from marshmallow import validate

from app.auth import password_policy, usernames
from app.auth.personal_access_tokens import DEFAULT_LIFETIME, CreatedToken
from app.auth.schemas import UserOut, current_password, email, new_password, username
from app.infra.clock import utc_now
from app.models import Right, SpotifyApp, SpotifyUser, User, normalization
from app.models.personal_access_token import MAX_NAME_LENGTH, MAX_TOKEN_LIFETIME
from app.spotify.schemas import SpotifyOut, describe
from app.user.export import PersonalData
from app.web.access import require_user
from app.web.api import Timestamp
from app.web.validation import (
    AT_LEAST_ONE,
    BETWEEN,
    GUESSABLE,
    PASSWORD_NEEDED,
    REQUIRED,
    RIGHTS,
    TOKEN_NAME,
    Items,
    Normalized,
    Number,
    Schema,
    Text,
)


class KnownPassword(Schema):
    """The account's password, which is required unless it has none."""

    password = current_password(required=False)

    @ma.validates_schema(pass_original=True, skip_on_field_errors=False)
    def validate_password(self, _data: dict[str, str], original: Any, **_options: object) -> None:
        """Require the password of an account that has one."""
        _require_password(original, "password")


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
        if "email" in data and require_user().email not in normalization.spellings(data["email"]):
            _require_password(original, "current_password", PASSWORD_NEEDED)


class PasswordChange(Schema):
    """A new password, and the current one, which is required unless the account has none."""

    current_password = current_password(required=False)
    new_password = new_password()

    @ma.validates_schema(pass_original=True, skip_on_field_errors=False)
    def validate_current_password(self, _data: dict[str, str], original: Any, **_options: object) -> None:
        """Require the password of an account that has one."""
        _require_password(original, "current_password")

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


class NewToken(Schema):
    """A personal access token to create.

    `current_password` is needed unless the account has no password.
    """

    name = Normalized(
        required=True,
        max_length=MAX_NAME_LENGTH,
        normalize=str.strip,
        is_valid=usernames.is_label,
        error=TOKEN_NAME,
        metadata={"example": "backup script"},
    )
    rights = Items(
        Text(validate=validate.OneOf(list(Right), error=RIGHTS)),
        required=True,
        validate=validate.Length(min=1, error=AT_LEAST_ONE),
        metadata={"example": ["spotify:read"]},
    )
    expires_in_days = Number(
        load_default=DEFAULT_LIFETIME.days,
        validate=validate.Range(min=1, max=MAX_TOKEN_LIFETIME.days, error=BETWEEN),
        metadata={"example": DEFAULT_LIFETIME.days},
    )
    current_password = current_password(required=False)


class Rights(ma.fields.Field[str]):
    """The rights of a token. For responses only."""

    def __init__(self, **options: Any) -> None:
        items = {"type": "string", "enum": [*Right]}
        super().__init__(metadata={"type": "array", "items": items}, **options)

    def _serialize(self, value: str | None, attr: str | None, obj: Any, **kwargs: Any) -> list[str]:
        return (value or "").split()


class PersonalAccessTokenOut(ma.Schema):
    """A personal access token, without the token itself."""

    id = ma.fields.Integer(required=True)
    name = ma.fields.String(required=True)
    rights = Rights(required=True)
    expires_at = Timestamp(required=True)
    created_at = Timestamp(required=True)
    last_used_at = Timestamp(required=True, allow_none=True)  # recorded every few minutes
    last_used_ip = ma.fields.String(required=True, allow_none=True)


class CreatedTokenOut(PersonalAccessTokenOut):
    """A new personal access token. This is the only time that `token` is shown."""

    token = ma.fields.String(required=True)


class PersonalAccessTokensOut(ma.Schema):
    """The personal access tokens of the user."""

    items = ma.fields.List(ma.fields.Nested(PersonalAccessTokenOut), required=True)


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
    sign_in_since = Timestamp(required=True, allow_none=True)
    connected_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)
    last_used_at = Timestamp(required=True)


class ExportedSpotifyApp(ma.Schema):
    """The person's own application at Spotify, without its secret."""

    client_id = ma.fields.String(required=True)
    has_secret = ma.fields.Boolean(required=True)
    state = ma.fields.String(required=True)
    paused_until = Timestamp(required=True, allow_none=True)
    created_at = Timestamp(required=True)
    updated_at = Timestamp(required=True)


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
    tokens = ma.fields.List(ma.fields.Nested(PersonalAccessTokenOut), required=True)
    spotify_app = ma.fields.Nested(ExportedSpotifyApp, required=True, allow_none=True)
    spotify = ma.fields.Nested(ExportedSpotify, required=True, allow_none=True)
    spotify_refreshes = ma.fields.List(ma.fields.Nested(ExportedRefresh), required=True)


def _require_password(body: Any, field: str, message: str = REQUIRED) -> None:
    """Require the password of an account that has one.

    Raises:
        ValidationError: The field is missing.
    """
    if isinstance(body, dict) and field not in body and require_user().has_password:
        raise ma.ValidationError(message, field)


def describe_created(created: CreatedToken) -> dict[str, Any]:
    """Return a new token as the API shows it."""
    row = created.row
    names = ("id", "name", "rights", "expires_at", "created_at", "last_used_at", "last_used_ip")
    return {name: getattr(row, name) for name in names} | {"token": created.token}


def describe_export(data: PersonalData) -> dict[str, Any]:
    """Return personal data as the API shows it."""
    return {
        "exported_at": utc_now(),
        "user": _describe_user(data.user) | {"previous_emails": data.previous_emails},
        "sessions": data.sessions,
        "tokens": data.tokens,
        "spotify_app": _describe_app(data.spotify_app) if data.spotify_app is not None else None,
        "spotify": _describe_connection(data.spotify_user) if data.spotify_user is not None else None,
        "spotify_refreshes": data.refreshes,
    }


def _describe_user(user: User) -> dict[str, Any]:
    names = [*(column.key for column in sa.inspect(User).column_attrs), "email_verified", "has_password"]
    return {name: getattr(user, name) for name in names}


def _describe_app(app: SpotifyApp) -> dict[str, Any]:
    names = ("client_id", "state", "paused_until", "created_at", "updated_at")
    return {name: getattr(app, name) for name in names} | {"has_secret": app.client_secret is not None}


def _describe_connection(spotify_user: SpotifyUser) -> dict[str, Any]:
    return describe(spotify_user) | {
        "product": spotify_user.product,
        "country": spotify_user.country,
        "sign_in_since": spotify_user.sign_in_since,
        "connected_at": spotify_user.created_at,
        "updated_at": spotify_user.updated_at,
        "last_used_at": spotify_user.last_used_at,
    }
