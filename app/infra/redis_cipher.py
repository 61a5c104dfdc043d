"""Encryption for values in Redis that grant access, such as sessions, and their atomic replacement."""

from pathlib import Path

import redis
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.infra import redis_scripts
from app.infra.redis_scripts import Script

_VERSION = b"\x01"
_COMPARE_AND_SET = Script(Path(__file__).with_name("compare_and_set.lua"))


class RedisCipher:
    """AES-256-SIV (RFC 5297) with a key derived from `SECRET_KEY`, and the Redis key as associated data.

    Therefore write access to Redis is not enough to create a value, or to copy one to another key.
    Equal values for the same key encrypt to equal bytes, so Redis can compare and set them.
    """

    def __init__(self, secret_key: str) -> None:
        derive = HKDF(hashes.SHA256(), length=64, salt=None, info=b"backline values in redis, version 1")
        self._cipher = AESSIV(derive.derive(secret_key.encode()))

    def encrypt(self, key: str, value: bytes) -> bytes:
        """Encrypt a value for this Redis key."""
        return _VERSION + self._cipher.encrypt(value, [key.encode()])

    def decrypt(self, key: str, encrypted: bytes) -> bytes | None:
        """Decrypt the value of this Redis key. Returns None unless `encrypt` made it for the same key."""
        if not encrypted.startswith(_VERSION):
            return None
        try:
            return self._cipher.decrypt(encrypted[len(_VERSION) :], [key.encode()])
        except InvalidTag:
            return None


def compare_and_set(client: redis.Redis, key: str, old: bytes, new: bytes) -> bool:
    """Replace a value if it is still the old one, and keep its time to live. Returns whether it was."""
    return bool(redis_scripts.call(client, _COMPARE_AND_SET, [key], old, new))
