"""Parse responses of the token endpoint: keep everything that is usable, above all a new refresh token.

If each refresh token works only once, dropping a new one because another member is malformed would break the
connection. So each member is parsed separately.
"""

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.models.times import LONGEST_WAIT

log = logging.getLogger(__name__)

T = TypeVar("T")

# An access token has to fit into a header, and a refresh token, encrypted, into a column of 16 KiB.
# Spotify's are a few hundred characters long.
MAX_ACCESS_TOKEN_CHARS, MAX_REFRESH_TOKEN_BYTES, MAX_SCOPE_CHARS = 8192, 16_000, 2048
# RFC 6749 section 5.1 lets a server document the lifetime instead of sending it; Spotify documents one hour.
# If a token expires earlier, a 401 leads to a refresh.
DEFAULT_LIFETIME_SECONDS = 3600
_MAX_LIFETIME_SECONDS = LONGEST_WAIT.total_seconds()


@dataclass(frozen=True)
class TokenResponse:
    """The usable members of a response. Without a refresh token, the old one remains valid."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int  # seconds
    scope: str | None  # None if it was not sent


class NoAccessToken(Exception):
    """A response has no usable access token. `refresh_token` is its refresh token, if it has one."""

    def __init__(self, refresh_token: str | None) -> None:
        super().__init__("no_access_token")
        self.refresh_token = refresh_token


def parse(body: bytes) -> TokenResponse:
    """Parse a response, even if its content type is wrong or its JSON is damaged.

    `token_type` is ignored: Spotify's Web API accepts bearer tokens only.

    Raises:
        NoAccessToken: There is no usable access token.
    """
    members = _members(body)
    access_token = _usable(members, "access_token", _access_token)
    refresh_token = _usable(members, "refresh_token", _refresh_token)
    expires_in = _usable(members, "expires_in", _seconds) or DEFAULT_LIFETIME_SECONDS
    scope = _usable(members, "scope", _scope)
    if access_token is None:
        raise NoAccessToken(refresh_token)
    return TokenResponse(access_token, refresh_token, expires_in, scope)


def find_refresh_token(body: bytes) -> str | None:
    """Return the refresh token in an error response or an incomplete one, or None."""
    return _usable(_members(body), "refresh_token", _refresh_token)


def _usable(members: dict[str, list[Any]], name: str, reader: Callable[[Any], T | None]) -> T | None:
    """Return the last value of a member that the reader accepts."""
    values = [value for value in members.get(name, []) if value not in (None, "")]
    usable = next((found for value in reversed(values) if (found := reader(value)) is not None), None)
    if values and usable is None:
        log.warning("token_response_malformed", extra={"member": name})
    return usable


def _members(body: bytes) -> dict[str, list[Any]]:
    """Return the members of the JSON object, each with all of its values: a name may be repeated."""
    # Tokens are ASCII. Bytes in an unexpected encoding must not make the whole response unusable.
    text = body.decode(json.detect_encoding(body), "replace").lstrip("\ufeff \t\r\n")
    try:
        value, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        value = None
    members: dict[str, list[Any]] = value if isinstance(value, dict) else {}
    if members.keys().isdisjoint(("access_token", "refresh_token")):
        members["refresh_token"] = _salvaged(text)
    return members


def _salvaged(text: str) -> list[str]:
    """Return the complete refresh tokens in a text that is truncated, or contains something else."""
    return [_DECODER.decode(quoted) for quoted in _REFRESH_TOKEN.findall(text)]


def _group(pairs: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return grouped


# `float` reads an integer of any length; `int` rejects one of 4,300 digits, and thereby the whole response.
_DECODER = json.JSONDecoder(object_pairs_hook=_group, parse_int=float, strict=False)
_REFRESH_TOKEN = re.compile(r'"refresh_token"\s*:\s*("(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})+")')


def _access_token(value: object) -> str | None:
    """Return a token that can be sent in a header (RFC 6749 appendix A.12)."""
    token = value.strip() if isinstance(value, str) else ""
    fits = 0 < len(token) <= MAX_ACCESS_TOKEN_CHARS and token.isascii() and token.isprintable()
    return token if fits else None


def _refresh_token(value: object) -> str | None:
    """Return a token that can be stored. It is sent in a form, so it can contain any characters."""
    token = value.strip() if isinstance(value, str) else ""
    size = len(token.encode(errors="replace"))
    is_text = "\ufffd" not in token and not any("\ud800" <= character <= "\udfff" for character in token)
    return token if is_text and 0 < size <= MAX_REFRESH_TOKEN_BYTES else None


def _seconds(value: object) -> int | None:
    """Return a lifetime in whole seconds, at most a day. `True` does not count as a number."""
    if isinstance(value, str) and value.isascii() and "_" not in value:
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        return None
    return max(1, int(min(value, _MAX_LIFETIME_SECONDS)))


def _scope(value: object) -> str | None:
    """Return scopes separated by spaces. RFC 6749 does not allow an empty list."""
    scope = " ".join(value.split()) if isinstance(value, str) else ""
    fits = 0 < len(scope) <= MAX_SCOPE_CHARS and scope.isascii() and scope.isprintable()
    return scope if fits else None
