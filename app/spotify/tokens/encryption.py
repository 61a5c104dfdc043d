"""Encrypts tokens for their columns. Each is bound to its connection, grant, and column."""

import logging
from datetime import timedelta

from app.errors import SpotifyUnavailable
from app.infra.encryption import DecryptionError, TokenCipher
from app.models import AccessToken
from app.models.snapshots import TokenSnapshot

log = logging.getLogger(__name__)

# How long the scheduler skips a token that it cannot decrypt. Otherwise, it would log that twice a minute.
UNDECRYPTABLE_WAIT = timedelta(hours=1)


def encrypt_tokens(
    cipher: TokenCipher, spotify_user_id: int, grant_id: str, access_token: str, refresh_token: str
) -> dict[str, object]:
    """Return the columns to write. Both tokens are written together, so that a row needs only one key."""
    return {
        "access_token": cipher.encrypt(access_token, "access_token", spotify_user_id, grant_id),
        "refresh_token": cipher.encrypt(refresh_token, "refresh_token", spotify_user_id, grant_id),
        "key_id": cipher.newest_key_id,
    }


def encrypt_refresh_token(
    cipher: TokenCipher, row: AccessToken, refresh_token: str, *, spare: str
) -> dict[str, object]:
    """Return the columns to write for a new refresh token that came without an access token."""

    def encrypted(token: str) -> bytes:
        return cipher.encrypt(token, "refresh_token", row.spotify_user_id, row.grant_id)

    return {"refresh_token": encrypted(refresh_token), "spare_refresh_token": encrypted(spare)}


def decrypt_token(cipher: TokenCipher, row: AccessToken | TokenSnapshot, column: str) -> str:
    """Decrypt a token. One that cannot be decrypted is logged and kept, because a key may be missing.

    Raises:
        SpotifyUnavailable: None of our keys decrypts it.
    """
    encrypted: bytes | None = getattr(row, column)
    try:
        return cipher.decrypt(encrypted or b"", column, row.spotify_user_id, row.grant_id)
    except DecryptionError:
        log.error("token_decryption_failed", extra={"spotify_user_id": row.spotify_user_id, "column": column})
        raise SpotifyUnavailable(
            "The stored tokens cannot be decrypted. The problem has been logged for the operator."
        ) from None
