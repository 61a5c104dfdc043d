"""Read what the token endpoint replied: keep whatever is usable, and above all a new refresh token.

Where refresh tokens are used once, a new one that is dropped because of another member's mistake
costs the person the connection. So each member is read by itself.
"""

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.models.access_token import LONGEST_WAIT

log = logging.getLogger(__name__)

T = TypeVar("T")

# An access token has to fit into a header, and a refresh token, encrypted, into a column of 16 KiB.
# Spotify's are a few hundred characters long.
MAX_ACCESS_TOKEN_CHARS, MAX_REFRESH_TOKEN_BYTES, MAX_SCOPE_CHARS = 8192, 16_000, 2048
# Spotify documents that every access token is valid for one hour, and RFC 6749 section 5.1 lets a
# server document the lifetime instead of sending it. If it is shorter, a 401 leads to a refresh.
DEFAULT_LIFETIME_SECONDS = 3600
_MAX_LIFETIME_SECONDS = LONGEST_WAIT.total_seconds()


@dataclass(frozen=True)
class ParsedTokenResponse:
    """What is usable of a reply; None where a member is absent or of no use."""

    access_token: str | None = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int  # seconds
    scope: str | None


def read(body: bytes) -> ParsedTokenResponse:
    """Read a reply of the token endpoint, whatever its status, content type, or condition.

    `token_type` is ignored: Spotify's Web API knows bearer tokens only.
    """
    members = _members(body)

    def usable(name: str, reader: Callable[[Any], T | None]) -> T | None:
        given = [value for value in members.get(name, []) if value not in (None, "")]
        found = next((read for value in reversed(given) if (read := reader(value)) is not None), None)
        if given and found is None:
            log.warning("token_response_malformed", extra={"member": name})
        return found

    return ParsedTokenResponse(
        access_token=usable("access_token", _access_token),
        refresh_token=usable("refresh_token", _refresh_token),
        expires_in=usable("expires_in", _seconds) or DEFAULT_LIFETIME_SECONDS,
        scope=usable("scope", _scope),
    )


def _members(body: bytes) -> dict[str, list[Any]]:
    """The members of the JSON object, each with all of its values: a name may be repeated."""
    # Tokens are ASCII; bytes that are not in the expected encoding must not cost the whole reply.
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
    """The refresh tokens that are complete in a text which is truncated, or wraps them in something else."""
    return [_DECODER.decode(quoted) for quoted in _REFRESH_TOKEN.findall(text)]


def _group(pairs: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return grouped


# `float` reads an integer of any length; `int` refuses one of 4,300 digits, and with it the whole reply.
_DECODER = json.JSONDecoder(object_pairs_hook=_group, parse_int=float, strict=False)
_REFRESH_TOKEN = re.compile(r'"refresh_token"\s*:\s*("(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})+")')


def _access_token(value: object) -> str | None:
    """A token that can be sent in a header (RFC 6749 appendix A.12)."""
    token = value.strip() if isinstance(value, str) else ""
    fits = 0 < len(token) <= MAX_ACCESS_TOKEN_CHARS and token.isascii() and token.isprintable()
    return token if fits else None


def _refresh_token(value: object) -> str | None:
    """A token that can be stored. It travels in a form, so it may hold any characters."""
    token = value.strip() if isinstance(value, str) else ""
    size = len(token.encode(errors="replace"))
    is_text = "\ufffd" not in token and not any("\ud800" <= character <= "\udfff" for character in token)
    return token if is_text and 0 < size <= MAX_REFRESH_TOKEN_BYTES else None


def _seconds(value: object) -> int | None:
    """A lifetime in whole seconds, of a day at most; `True` is a number only to Python."""
    if isinstance(value, str) and value.isascii() and "_" not in value:
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        return None
    return max(1, int(min(value, _MAX_LIFETIME_SECONDS)))


def _scope(value: object) -> str | None:
    """Scopes with a blank between them; RFC 6749 knows no empty list of them."""
    scope = " ".join(value.split()) if isinstance(value, str) else ""
    fits = 0 < len(scope) <= MAX_SCOPE_CHARS and scope.isascii() and scope.isprintable()
    return scope if fits else None
