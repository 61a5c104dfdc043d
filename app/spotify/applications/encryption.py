"""Encrypts the secrets of applications. Each is bound to its row."""

import logging

from app.errors import SpotifyUnavailable
from app.infra.encryption import DecryptionError, TokenCipher
from app.models import SpotifyApp

log = logging.getLogger(__name__)


def encrypt_secret(cipher: TokenCipher, app_id: int, secret: str | None) -> dict[str, object]:
    """Return the columns to write for an application's secret, or for a public client without one."""
    if secret is None:
        return {"client_secret": None, "key_id": None}
    return {"client_secret": cipher.encrypt(secret, *secret_context(app_id)), "key_id": cipher.newest_key_id}


def decrypt_secret(cipher: TokenCipher, row: SpotifyApp) -> str | None:
    """Decrypt an application's secret. Returns None for a public client.

    Raises:
        SpotifyUnavailable: None of our keys decrypts it. It is kept, because a key may be missing.
    """
    if row.client_secret is None:
        return None
    try:
        return cipher.decrypt(row.client_secret, *secret_context(row.id))
    except DecryptionError:
        log.error("client_secret_decryption_failed", extra={"spotify_app_id": row.id})
        raise SpotifyUnavailable(
            "The stored client secret cannot be decrypted. The problem has been logged for the operator."
        ) from None


def secret_context(app_id: int) -> tuple[object, ...]:
    """Return what an application's secret is bound to: it can be decrypted only with the same context."""
    return "spotify_app", app_id, "client_secret"
