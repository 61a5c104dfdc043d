"""Request and response bodies of the auth routes."""

from typing import Any

import marshmallow as ma
from marshmallow import validate

from app.auth import password_policy, usernames
from app.models import normalization
from app.models.user import has_email
from app.spotify.schemas import SpotifyOut
from app.web.api import Timestamp
from app.web.validation import (
    EMAIL,
    GUESSABLE,
    LENGTH,
    NOT_A_TOKEN,
    UNDO_ONLY,
    USERNAME,
    Normalized,
    Schema,
    Text,
    at_most,
)


def username() -> Normalized:
    """Return a field for a username, which is loaded in its normal form."""
    return Normalized(
        required=True,
        max_length=200,
        normalize=normalization.normal_form,
        is_valid=lambda text: usernames.is_username(normalization.normal_form(text)),
        error=USERNAME,
        metadata={"example": "ada"},
    )


def email() -> Normalized:
    """Return a field for an email address, which is loaded in the form that email is sent to."""
    return Normalized(
        required=True,
        max_length=500,
        normalize=normalization.sending_form,
        is_valid=normalization.is_email,
        error=EMAIL,
        metadata={"format": "email", "example": "ada@example.com"},
    )


class PasswordLength(validate.Length):
    """Limits the number of characters of a password in its prepared form."""

    def __call__(self, value: Any) -> Any:
        """Validate a password. One that is far too long is not prepared, which could be slow."""
        is_far_too_long = len(value) > password_policy.MAX_TYPED_LENGTH
        super().__call__(value if is_far_too_long else password_policy.prepare(value))
        return value


def new_password() -> Text:
    """Return a field for a password that is being chosen."""
    length = PasswordLength(min=password_policy.MIN_LENGTH, max=password_policy.MAX_LENGTH, error=LENGTH)
    return Text(
        required=True,
        load_only=True,
        validate=[length, _require_not_guessable],
        metadata={"format": "password", "example": "a long sentence is best"},
    )


def current_password(*, required: bool = True) -> Text:
    """Return a field for the password of an account."""
    return Text(
        required=required,
        load_only=True,
        validate=at_most(password_policy.MAX_TYPED_LENGTH),
        metadata={"format": "password", "example": "a long sentence is best"},
    )


def token() -> Text:
    """Return a field for a token from an email."""
    return Text(required=True, load_only=True, validate=at_most(200, NOT_A_TOKEN))


def _require_not_guessable(password: str) -> None:
    # A password of the wrong length has a message already.
    has_valid_length = password_policy.MIN_LENGTH <= len(password) <= password_policy.MAX_TYPED_LENGTH
    if has_valid_length and password_policy.is_guessable(password):
        raise ma.ValidationError(GUESSABLE)


class Registration(Schema):
    """A new account."""

    username = username()
    email = email()
    password = new_password()

    @ma.validates_schema(skip_on_field_errors=False)
    def validate_password(self, data: dict[str, str], **_options: object) -> None:
        """Compare the password with the username and the email address, if they are valid."""
        names = {name: data[name] for name in ("username", "email") if name in data}
        if "password" in data and password_policy.is_guessable(data["password"], **names):
            raise ma.ValidationError(GUESSABLE, "password")


class Credentials(Schema):
    """The login and the password of an account."""

    login = Text(
        required=True,
        validate=at_most(500),
        metadata={"description": "Username or email address", "example": "ada"},
    )
    password = current_password()


class Audience(Schema):
    """The service that a JWT is for."""

    audience = Text(required=True, metadata={"example": "https://stats.example.com"})


class EmailOnly(Schema):
    """An email address."""

    email = email()


class TokenOnly(Schema):
    """A token from an email."""

    token = token()


class EmailChangeDecision(Schema):
    """A decision about a change of the email address."""

    token = token()
    decision = Text(
        required=True,
        load_only=True,
        validate=validate.OneOf(["undo"], error=UNDO_ONLY),
        metadata={"example": "undo"},
    )


class NewPassword(Schema):
    """A new password, with the token from the email."""

    token = token()
    password = new_password()


class Address(ma.fields.String):
    """The email address of an account, or null if it has none. For responses only."""

    def _serialize(self, value: str | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return value if value is not None and has_email(value) else None


class UserOut(ma.Schema):
    """A user."""

    id = ma.fields.Integer(required=True)
    username = ma.fields.String(required=True)
    email = Address(required=True, allow_none=True)
    has_password = ma.fields.Boolean(
        required=True,
        metadata={"description": "Without one, a sign-in within the last 15 minutes replaces it"},
    )
    email_verified = ma.fields.Boolean(required=True)
    pending_email = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Replaces `email` when it is verified"},
    )
    created_at = Timestamp(required=True)


class SessionOut(ma.Schema):
    """Who is signed in, and their connection to Spotify."""

    authenticated = ma.fields.Boolean(required=True)
    user = ma.fields.Nested(UserOut, required=True, allow_none=True)
    spotify = ma.fields.Nested(SpotifyOut, required=True, allow_none=True)
    spotify_sign_in = ma.fields.Boolean(
        metadata={"description": "True if people can sign in with Spotify. Otherwise not present"}
    )


class JwtOut(ma.Schema):
    """A JWT, and when it expires."""

    token = ma.fields.String(required=True)
    expires_at = Timestamp(required=True)
