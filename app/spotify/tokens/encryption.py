"""Encrypts tokens for their columns. Each is bound to its connection, grant, column, and application."""

import logging
from datetime import timedelta

from app.errors import SpotifyUnavailable
from app.infra.encryption import DecryptionError, TokenCipher
from app.models import AccessToken
from app.models.snapshots import Grant

log = logging.getLogger(__name__)

# How long the scheduler skips a token that it cannot decrypt. Otherwise, it would log that twice a minute.
UNDECRYPTABLE_WAIT = timedelta(hours=1)


def token_context(grant: Grant, column: str) -> tuple[object, ...]:
    """Return what a token is bound to: it can be decrypted only with the same context.

    The client id of a user's own application is part of it, so that the token is never sent with another one.
    """
    own_application = () if grant.client_id is None else (grant.client_id,)
    return column, grant.spotify_user_id, grant.grant_id, *own_application


def encrypt_tokens(
    cipher: TokenCipher, grant: Grant, access_token: str, refresh_token: str
) -> dict[str, object]:
    """Return the columns to write. Both tokens are written together, so that a row needs only one key."""
    return {
        "access_token": cipher.encrypt(access_token, *token_context(grant, "access_token")),
        "refresh_token": cipher.encrypt(refresh_token, *token_context(grant, "refresh_token")),
        "key_id": cipher.newest_key_id,
    }


def encrypt_refresh_token(
    cipher: TokenCipher, row: AccessToken, refresh_token: str, *, spare: str
) -> dict[str, object]:
    """Return the columns to write for a new refresh token that came without an access token."""

    def encrypted(token: str) -> bytes:
        return cipher.encrypt(token, *token_context(row, "refresh_token"))

    return {"refresh_token": encrypted(refresh_token), "spare_refresh_token": encrypted(spare)}


def decrypt_token(cipher: TokenCipher, row: Grant, column: str) -> str:
    """Decrypt a token. One that cannot be decrypted is logged and kept, because a key may be missing.

    Raises:
        SpotifyUnavailable: None of our keys decrypts it.
    """
    encrypted: bytes | None = getattr(row, column)
    try:
        return cipher.decrypt(encrypted or b"", *token_context(row, column))
    except DecryptionError:
        log.error("token_decryption_failed", extra={"spotify_user_id": row.spotify_user_id, "column": column})
        raise SpotifyUnavailable(
            "The stored tokens cannot be decrypted. The problem has been logged for the operator."
        ) from None
