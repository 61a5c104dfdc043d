"""Sealing secrets for the database: AES-256-GCM, with the place they belong to sealed in."""

import hashlib
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = b"\x01"
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12  # the 96 bits that GCM is made for (NIST SP 800-38D section 8.2.2)
_HEADER_BYTES = len(_VERSION) + _KEY_ID_BYTES + _NONCE_BYTES


class DecryptionError(Exception):
    """The sealed value is damaged, belongs elsewhere, or its key is not among ours."""


class TokenCipher:
    """Seals with the newest key and opens with any.

    A sealed value is `version (1) | key id (4) | nonce (12) | ciphertext and tag`. Its associated
    data is the header and the context, so a value copied to another row, grant or column, or
    given another key id, does not open.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._newest = _key_id(keys[0])

    def seal(self, plaintext: str, *context: object) -> bytes:
        """Seal text for the place that `context` names, such as column, link and grant."""
        header = _VERSION + self._newest
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._newest].encrypt(nonce, plaintext.encode(), _associated(header, context))
        return header + nonce + sealed

    @property
    def key_ids(self) -> list[str]:
        """The ids of our keys, newest first, in hexadecimal."""
        return [key_id.hex() for key_id in self._ciphers]

    @property
    def newest_key_id(self) -> str:
        return self._newest.hex()

    def open(self, sealed: bytes, *context: object) -> str:
        """Open a value sealed for the same place.

        Raises:
            Unreadable: it was not sealed by one of our keys for this context.
        """
        header, nonce = (
            sealed[: len(_VERSION) + _KEY_ID_BYTES],
            sealed[len(_VERSION) + _KEY_ID_BYTES : _HEADER_BYTES],
        )
        cipher = self._ciphers.get(header[len(_VERSION) :])
        if not header.startswith(_VERSION) or cipher is None or len(nonce) != _NONCE_BYTES:
            raise DecryptionError("The sealed value names no key of ours.")
        try:
            return cipher.decrypt(nonce, sealed[_HEADER_BYTES:], _associated(header, context)).decode()
        except InvalidTag:
            raise DecryptionError("The sealed value is damaged or belongs elsewhere.") from None


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"backline key id" + key).digest()[:_KEY_ID_BYTES]


def _associated(header: bytes, context: tuple[object, ...]) -> bytes:
    """Length before value, so that ("a", "bc") and ("ab", "c") differ."""
    parts = [str(part).encode() for part in context]
    return header + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
