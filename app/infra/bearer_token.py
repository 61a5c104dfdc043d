"""The format of personal access tokens, and the hash by which the database finds them.

A token is `bl_pat_`, 256 random bits in base64url, and a checksum. The prefix lets secret scanners find
leaked tokens. The checksum tells a mistyped token from a revoked one without asking the database.
"""

import hmac
import re
import secrets
import zlib

PREFIX = "bl_pat_"
_CHECKSUM_CHARS = 6
_TOKEN = re.compile(rf"({PREFIX}[A-Za-z0-9_-]{{43}})([0-9A-Za-z]{{{_CHECKSUM_CHARS}}})", re.ASCII)
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_token() -> str:
    """Return a new token."""
    text = PREFIX + secrets.token_urlsafe(32)
    return text + _checksum(text)


def is_well_formed(token: str) -> bool:
    """Return whether this is a token in our format, with the right checksum."""
    match = _TOKEN.fullmatch(token)
    return match is not None and _checksum(match[1]) == match[2]


def hash_token(secret_key: str, token: str) -> str:
    """Return the hash that the database stores. Without the key, no one can look up a token by it."""
    return hmac.digest(secret_key.encode(), token.encode(), "sha256").hex()


def _checksum(text: str) -> str:
    """Return the CRC32 in base62, padded with `0`."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECKSUM_CHARS):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits
