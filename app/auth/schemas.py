from typing import Any

import marshmallow as ma
from marshmallow import validate

from app.auth import passwords, usernames
from app.models import normalization
from app.spotify.schemas import SpotifyOut
from app.user.schemas import UserOut
from app.web.access import require_user
from app.web.validation import (
    EMAIL,
    GUESSABLE,
    LENGTH,
    NOT_A_TOKEN,
    PASSWORD_NEEDED,
    UNDO_ONLY,
    USERNAME,
    Normalized,
    Schema,
    Text,
    at_most,
)


def username() -> Normalized:
    """A username, loaded in its normal form."""
    return Normalized(
        required=True,
        max_length=200,
        normalize=normalization.normal_form,
        is_valid=lambda text: usernames.is_username(normalization.normal_form(text)),
        error=USERNAME,
        metadata={"example": "ada"},
    )


def email() -> Normalized:
    """An email address, loaded as mail is sent to it."""
    return Normalized(
        required=True,
        max_length=500,
        normalize=normalization.sending_form,
        is_valid=normalization.is_email,
        error=EMAIL,
        metadata={"format": "email", "example": "ada@example.com"},
    )


class PasswordLength(validate.Length):
    """Bounds for the number of characters once a password is prepared."""

    def __call__(self, value: Any) -> Any:
        # Do not prepare a text that is too long anyway: normalizing can take long.
        too_long = len(value) > passwords.MAX_TYPED_LENGTH
        super().__call__(value if too_long else passwords.prepare(value))
        return value


def new_password() -> Text:
    """A password that is being chosen."""
    return Text(
        required=True,
        load_only=True,
        validate=[
            PasswordLength(min=passwords.MIN_LENGTH, max=passwords.MAX_LENGTH, error=LENGTH),
            _refuse_guessable,
        ],
        metadata={"format": "password", "example": "a long sentence is best"},
    )


def known_password(*, required: bool = True) -> Text:
    """A password that is being shown."""
    return Text(
        required=required,
        load_only=True,
        validate=at_most(passwords.MAX_TYPED_LENGTH),
        metadata={"format": "password", "example": "a long sentence is best"},
    )


def token() -> Text:
    """A token from an email."""
    return Text(required=True, load_only=True, validate=at_most(200, NOT_A_TOKEN))


def _refuse_guessable(password: str) -> None:
    # One of a wrong length is refused for that alone.
    if passwords.MIN_LENGTH <= len(password) <= passwords.MAX_TYPED_LENGTH and passwords.is_common(password):
        raise ma.ValidationError(GUESSABLE)


class Registration(Schema):
    username = username()
    email = email()
    password = new_password()

    @ma.validates_schema(skip_on_field_errors=False)
    def validate_password(self, data: dict[str, str], **_options: object) -> None:
        """Compare the password with the person's own names. Only fields that are valid are in `data`."""
        own = {name: data[name] for name in ("username", "email") if name in data}
        if "password" in data and passwords.is_common(data["password"], **own):
            raise ma.ValidationError(GUESSABLE, "password")


class Credentials(Schema):
    login = Text(
        required=True,
        validate=at_most(500),
        metadata={"description": "Username or email address", "example": "ada"},
    )
    password = known_password()


class KnownPassword(Schema):
    password = known_password()


class PasswordIfNeeded(Schema):
    """Needed only if the sign-in was more than 15 minutes ago."""

    current_password = known_password(required=False)


class ProfileChange(Schema):
    """Any of them; what is left out stays as it is."""

    username = username()
    email = email()
    current_password = known_password()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"partial": True, **options})

    @ma.validates_schema(pass_original=True, skip_on_field_errors=False)
    def validate_current_password(self, data: dict[str, str], original: Any, **_options: object) -> None:
        """Require the password for a new address."""
        is_new = "email" in data and require_user().email not in normalization.spellings(data["email"])
        if is_new and "current_password" not in original:
            raise ma.ValidationError(PASSWORD_NEEDED, "current_password")


class PasswordChange(Schema):
    current_password = known_password()
    new_password = new_password()

    @ma.validates_schema(skip_on_field_errors=False)
    def validate_new_password(self, data: dict[str, str], **_options: object) -> None:
        """Compare the new password with the person's own names."""
        user, password = require_user(), data.get("new_password")
        if password and passwords.is_common(password, username=user.username, email=user.email):
            raise ma.ValidationError(GUESSABLE, "new_password")


class EmailOnly(Schema):
    email = email()


class TokenOnly(Schema):
    token = token()


class EmailChangeDecision(Schema):
    token = token()
    decision = Text(
        required=True,
        load_only=True,
        validate=validate.OneOf(["undo"], error=UNDO_ONLY),
        metadata={"example": "undo"},
    )


class NewPassword(Schema):
    token = token()
    password = new_password()


class SessionOut(ma.Schema):
    authenticated = ma.fields.Boolean(required=True)
    user = ma.fields.Nested(UserOut, required=True, allow_none=True)
    spotify = ma.fields.Nested(SpotifyOut, required=True, allow_none=True)
