"""Tokens into their columns and out again: sealed for their link, grant and column."""

import logging

from app.errors import SpotifyUnavailable
from app.infra.encryption import DecryptionError
from app.models import AccessToken
from app.services import services

log = logging.getLogger(__name__)


def encrypt_tokens(link_id: int, grant_id: str, access_token: str, refresh_token: str) -> dict[str, object]:
    """The columns to write. Both tokens always together, so that a row needs one key only."""
    token_cipher = services().token_cipher
    return {
        "access_token": token_cipher.encrypt(access_token, "access_token", link_id, grant_id),
        "refresh_token": token_cipher.encrypt(refresh_token, "refresh_token", link_id, grant_id),
        "key_id": token_cipher.newest_key_id,
    }


def encrypt_refresh_token(row: AccessToken, refresh_token: str, *, spare: str) -> dict[str, object]:
    """The columns to write where there is a new refresh token, but no access token."""

    def sealed(token: str) -> bytes:
        return services().token_cipher.encrypt(token, "refresh_token", row.spotify_user_id, row.grant_id)

    return {"refresh_token": sealed(refresh_token), "spare_refresh_token": sealed(spare)}


def decrypt_token(row: AccessToken, column: str) -> str:
    """A token in the clear. One that our keys do not open is reported and left alone: a key may be missing.

    Raises:
        SpotifyUnavailable
    """
    sealed: bytes | None = getattr(row, column)
    try:
        return services().token_cipher.decrypt(sealed or b"", column, row.spotify_user_id, row.grant_id)
    except DecryptionError:
        log.error("token_unreadable", extra={"link": row.spotify_user_id, "column": column})
        raise SpotifyUnavailable("The stored tokens cannot be read; the operator has been told.") from None
