"""Fields of request bodies, and what people read about a field that is not valid: all messages are here."""

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
USERNAME = "Use 2 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit."
EMAIL = "Enter an email address, such as ada@example.com."
LENGTH = "Use {min} to {max} characters."
TOO_LONG = "Use at most {max} characters."
GUESSABLE = (
    "This password is easy to guess: it is common, or too similar to your username or email address. "
    "Choose another one."
)
PASSWORD_NEEDED = "Enter your current password to change the email address."  # noqa: S105
UNDO_ONLY = 'The decision must be "undo".'
NOT_A_TOKEN = "This is not a token from one of our emails."  # noqa: S105


class Schema(ma.Schema):
    """A request body or query."""

    error_messages = {"unknown": UNKNOWN, "type": NOT_AN_OBJECT}


class Text(ma.fields.String):
    """Text."""

    default_error_messages = {
        "required": REQUIRED,
        "null": NOT_TEXT,
        "invalid": NOT_TEXT,
        "invalid_utf8": NOT_TEXT,
    }


def at_most(length: int, error: str = TOO_LONG) -> validate.Length:
    """Refuse longer text."""
    return validate.Length(max=length, error=error)


class Normalized(Text):
    """Text that is brought into a form in which it is either valid or not. It is loaded in that form."""

    def __init__(
        self,
        *,
        most: int,
        form: Callable[[str], str],
        accepts: Callable[[str], bool],
        error: str,
        **options: Any,
    ) -> None:
        super().__init__(validate=at_most(most, error), **options)
        self._most, self._form, self._accepts, self._error = most, form, accepts, error

    def _deserialize(self, value: Any, attr: str | None, data: Any, **options: Any) -> str:
        text: str = super()._deserialize(value, attr, data, **options)
        if len(text) > self._most or not self._accepts(text):
            raise ma.ValidationError(self._error)
        return self._form(text)


class Flag(ma.fields.Boolean):
    """True or false."""

    default_error_messages = {"required": REQUIRED, "null": NOT_BOOLEAN, "invalid": NOT_BOOLEAN}
