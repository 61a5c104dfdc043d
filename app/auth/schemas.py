from typing import Any

import marshmallow as ma
from marshmallow import validate

from app.auth import names, passwords, usernames
from app.spotify.schemas import SpotifyOut
from app.user.schemas import UserOut

BAD_USERNAME = "Use 2 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit."
BAD_EMAIL = "Not a valid email address."


class PasswordLength(validate.Length):
    """Bounds for the number of characters once a password is prepared."""

    def __call__(self, value: Any) -> Any:
        # Do not prepare a text that is too long anyway: normalizing can take long.
        too_long = len(value) > passwords.MAX_TYPED_LENGTH
        super().__call__(value if too_long else passwords.prepare(value))
        return value


def new_password() -> ma.fields.String:
    """A password that is being chosen."""
    return ma.fields.String(
        required=True,
        load_only=True,
        validate=PasswordLength(
            min=passwords.MIN_LENGTH, max=passwords.MAX_LENGTH, error="Use {min} to {max} characters."
        ),
        metadata={"format": "password", "example": "a long sentence is best"},
    )


def known_password(*, required: bool = True) -> ma.fields.String:
    """A password that is being shown."""
    return ma.fields.String(
        required=required,
        load_only=True,
        validate=validate.Length(max=passwords.MAX_TYPED_LENGTH),
        metadata={"format": "password", "example": "a long sentence is best"},
    )


def token() -> ma.fields.String:
    """A token from a mail."""
    return ma.fields.String(required=True, load_only=True, validate=validate.Length(max=200))


class Identity(ma.Schema):
    """Name and address, brought into their normal form; a `ValidationError` where that is neither."""

    username = ma.fields.String(required=True, validate=validate.Length(max=200), metadata={"example": "ada"})
    email = ma.fields.String(
        required=True,
        validate=validate.Length(max=500),
        metadata={"format": "email", "example": "ada@example.com"},
    )

    @ma.post_load
    def normalise(self, data: dict[str, Any], **_kwargs: object) -> dict[str, Any]:
        errors = {}
        for field, form, good, message in (
            ("username", names.normal_form, usernames.is_username, BAD_USERNAME),
            ("email", names.address_form, names.is_email, BAD_EMAIL),
        ):
            if field in data:
                data[field] = form(data[field])
                if not good(data[field]):
                    errors[field] = [message]
        if errors:
            raise ma.ValidationError(errors)
        return data


class Registration(Identity):
    password = new_password()


class Credentials(ma.Schema):
    login = ma.fields.String(
        required=True,
        validate=validate.Length(max=500),
        metadata={"description": "User name or e-mail address", "example": "ada"},
    )
    password = known_password()


class KnownPassword(ma.Schema):
    password = known_password()


class PasswordIfNeeded(ma.Schema):
    """Needed only if the sign-in was more than 15 minutes ago."""

    current_password = known_password(required=False)


class ProfileChange(Identity):
    """Any of them; what is left out stays as it is."""

    current_password = known_password()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"partial": True, **options})


class PasswordChange(ma.Schema):
    current_password = known_password()
    new_password = new_password()


class EmailOnly(Identity):
    class Meta:
        exclude = ("username",)


class TokenOnly(ma.Schema):
    token = token()


class NewPassword(ma.Schema):
    token = token()
    password = new_password()


class SessionOut(ma.Schema):
    authenticated = ma.fields.Boolean(required=True)
    user = ma.fields.Nested(UserOut, required=True, allow_none=True)
    spotify = ma.fields.Nested(SpotifyOut, required=True, allow_none=True)
