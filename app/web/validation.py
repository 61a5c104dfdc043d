"""Fields of request bodies, and all messages about invalid fields."""

from collections.abc import Callable
from typing import Any

import marshmallow as ma
from marshmallow import validate

REQUIRED = "This field is required."
NOT_TEXT = "This must be text."
NOT_BOOLEAN = "Use true or false."
NOT_AN_OBJECT = "This must be a JSON object."
REPEATED = "Must not be repeated."
UNKNOWN = "There is no field with this name."
USERNAME = "Use 2 to 64 letters, digits, '.', '_', or '-', and start with a letter or a digit."
EMAIL = "Enter an email address, such as ada@example.com."
LENGTH = "Use {min} to {max} characters."
TOO_LONG = "Use at most {max} characters."
GUESSABLE = (
    "This password is easy to guess, because it is common or similar to your username or email address. "
    "Choose another one."
)
PASSWORD_NEEDED = "Enter your current password to change your email address."  # noqa: S105
CLIENT_ID = "Use the client ID from Spotify's dashboard: letters and digits only."
CLIENT_SECRET = "Use the client secret from Spotify's dashboard: letters and digits only."  # noqa: S105
APPLICATION_OF_SERVER = "This is the application of this server. Use one of your own."
UNKNOWN_AUDIENCE = "This server issues no JWTs for this audience."
TOKEN_NAME = "Use 1 to 100 printable characters."  # noqa: S105
RIGHTS = "Choose from {choices}."
AT_LEAST_ONE = "Choose at least one."
NOT_A_LIST = "This must be a list."
NOT_A_NUMBER = "This must be a whole number."
BETWEEN = "Use {min} to {max}."
UNDO_ONLY = 'The decision must be "undo".'
OPTIONAL_SCOPES = (
    "This server does not ask for all of these. SPOTIFY_OPTIONAL_SCOPES lists what it may ask for."
)
NO_INTENT = "The only intent is sign_in, if SPOTIFY_SIGN_IN is on."
NOT_A_PAGE = "This must be a path of the app on its own origin, such as /playlists?sort=name."
NOT_A_TOKEN = "This is not a token from one of our emails."  # noqa: S105


class Schema(ma.Schema):
    """A request body or query."""

    error_messages = {"unknown": UNKNOWN, "type": NOT_AN_OBJECT}


class Text(ma.fields.String):
    """A string field with our error messages."""

    default_error_messages = {
        "required": REQUIRED,
        "null": NOT_TEXT,
        "invalid": NOT_TEXT,
        "invalid_utf8": NOT_TEXT,
    }


def at_most(length: int, error: str = TOO_LONG) -> validate.Length:
    """Return a validator that rejects longer text."""
    return validate.Length(max=length, error=error)


class Normalized(Text):
    """Text that is loaded in a normal form."""

    def __init__(
        self,
        *,
        max_length: int,
        normalize: Callable[[str], str],
        is_valid: Callable[[str], bool],
        error: str,
        **options: Any,
    ) -> None:
        super().__init__(validate=at_most(max_length, error), **options)
        self._max_length, self._error = max_length, error
        self._normalize, self._is_valid = normalize, is_valid

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> str:
        text: str = super()._deserialize(value, attr, data, **options)
        if len(text) > self._max_length or not self._is_valid(text):
            raise ma.ValidationError(self._error)
        return self._normalize(text)


class Flag(ma.fields.Boolean):
    """A boolean field with our error messages."""

    default_error_messages = {"required": REQUIRED, "null": NOT_BOOLEAN, "invalid": NOT_BOOLEAN}


class Number(ma.fields.Integer):
    """An integer field with our error messages."""

    default_error_messages = {"required": REQUIRED, "null": NOT_A_NUMBER, "invalid": NOT_A_NUMBER}

    def __init__(self, **options: Any) -> None:
        super().__init__(strict=True, **options)

    def _validated(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):  # neither 1.0 nor true
            raise self.make_error("invalid", input=value)
        return value


class Items(ma.fields.List[Any]):
    """A list field with our error messages."""

    default_error_messages = {"required": REQUIRED, "null": NOT_A_LIST, "invalid": NOT_A_LIST}
