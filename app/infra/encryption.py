"""Encryption of secrets in the database: AES-256-GCM, bound to the row and column of each value."""

import hashlib
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = b"\x01"
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12  # 96 bits, as recommended for GCM (NIST SP 800-38D section 8.2.2)
_PREFIX_BYTES = len(_VERSION) + _KEY_ID_BYTES
_HEADER_BYTES = _PREFIX_BYTES + _NONCE_BYTES


class DecryptionError(Exception):
    """The value is damaged, was encrypted with another context, or with an unknown key."""


class TokenCipher:
    """Encrypts with the newest key and decrypts with any of them.

    An encrypted value is `version (1) | key id (4) | nonce (12) | ciphertext and tag`. Version, key id, and
    context are its associated data, so a value that was copied to another row, grant, or column cannot be
    decrypted there.

    Args:
        keys: 32 bytes each, newest first.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._newest = _key_id(keys[0])

    def encrypt(self, plaintext: str, *context: object) -> bytes:
        """Encrypt text. `context` says what it is bound to, such as a column, a row, and a grant."""
        prefix = _VERSION + self._newest
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = self._ciphers[self._newest].encrypt(
            nonce, plaintext.encode(), _associated_data(prefix, context)
        )
        return prefix + nonce + ciphertext

    @property
    def key_ids(self) -> list[str]:
        """The ids of all keys, newest first, in hexadecimal."""
        return [key_id.hex() for key_id in self._ciphers]

    @property
    def newest_key_id(self) -> str:
        """The id of the key that encrypts, in hexadecimal."""
        return self._newest.hex()

    def decrypt(self, encrypted: bytes, *context: object) -> str:
        """Decrypt a value that was encrypted with the same context.

        Raises:
            DecryptionError: It was not encrypted with one of the keys for this context.
        """
        prefix, nonce = encrypted[:_PREFIX_BYTES], encrypted[_PREFIX_BYTES:_HEADER_BYTES]
        cipher = self._ciphers.get(prefix[len(_VERSION) :])
        if not prefix.startswith(_VERSION) or cipher is None or len(nonce) != _NONCE_BYTES:
            raise DecryptionError("The value names no known key.")
        try:
            plaintext = cipher.decrypt(nonce, encrypted[_HEADER_BYTES:], _associated_data(prefix, context))
        except InvalidTag:
            raise DecryptionError("The value is damaged, or was encrypted with another context.") from None
        return plaintext.decode()


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"backline key id" + key).digest()[:_KEY_ID_BYTES]


def _associated_data(prefix: bytes, context: tuple[object, ...]) -> bytes:
    """Join the parts, each after its length, so that ("a", "bc") and ("ab", "c") differ."""
    parts = [str(part).encode() for part in context]
    return prefix + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
