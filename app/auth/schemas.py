from typing import Any

import marshmallow as ma
from marshmallow import validate

from app.auth import names, passwords
from app.spotify.schemas import SpotifyOut
from app.user.schemas import UserOut


class Registration(ma.Schema):
    username = ma.fields.String(required=True, validate=validate.Length(max=200), metadata={"example": "ada"})
    email = ma.fields.String(
        required=True,
        validate=validate.Length(max=500),
        metadata={"format": "email", "example": "ada@example.com"},
    )
    password = ma.fields.String(
        required=True,
        load_only=True,
        validate=validate.Length(min=passwords.MIN_LENGTH, max=passwords.MAX_LENGTH),
        metadata={"format": "password", "example": "a long sentence is best"},
    )

    @ma.post_load
    def normalise(self, data: dict[str, Any], **_kwargs: object) -> dict[str, Any]:
        """Name and address in their normal form; a `ValidationError` where that is neither."""
        data["username"] = names.normal_form(data["username"])
        data["email"] = names.normal_form(data["email"])
        errors = {}
        if not names.is_username(data["username"]):
            errors["username"] = [
                "Use 2 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit."
            ]
        if not names.is_email(data["email"]):
            errors["email"] = ["Not a valid email address."]
        if errors:
            raise ma.ValidationError(errors)
        return data


class Credentials(ma.Schema):
    login = ma.fields.String(
        required=True,
        validate=validate.Length(max=500),
        metadata={"description": "User name or e-mail address", "example": "ada"},
    )
    password = ma.fields.String(
        required=True,
        load_only=True,
        validate=validate.Length(max=passwords.MAX_LENGTH),
        metadata={"format": "password", "example": "a long sentence is best"},
    )


class SessionOut(ma.Schema):
    authenticated = ma.fields.Boolean(required=True)
    user = ma.fields.Nested(UserOut, required=True, allow_none=True)
    spotify = ma.fields.Nested(SpotifyOut, required=True, allow_none=True)
