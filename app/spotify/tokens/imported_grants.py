"""Grants that another service has obtained with the same client id."""

import uuid
from datetime import datetime

from app.infra.encryption import TokenCipher
from app.models import AccessToken, GrantState
from app.spotify.tokens.encryption import token_context
from app.spotify.tokens.transitions import Values


def imported_grant(
    cipher: TokenCipher,
    spotify_user_id: int,
    refresh_token: str,
    *,
    scope: str,
    authorized_at: datetime | None,
    now: datetime,
    due_at: datetime,
) -> Values:
    """Return the columns of a new grant. It has no access token, so its first use refreshes it.

    From the moment it is stored, the refresh token is in the custody of `app.spotify.tokens.refresh`: nothing
    else presents it to Spotify. `authorized_at` is None if it is unknown when the person consented.
    """
    grant_id = uuid.uuid4().hex
    context = token_context(AccessToken(spotify_user_id=spotify_user_id, grant_id=grant_id), "refresh_token")
    return {
        "spotify_user_id": spotify_user_id,
        "grant_id": grant_id,
        "generation": 0,
        "client_id": None,  # the deployment's
        "state": GrantState.ACTIVE,
        "access_token": None,
        "refresh_token": cipher.encrypt(refresh_token, *context),
        "spare_refresh_token": None,
        "key_id": cipher.newest_key_id,
        "scope": scope,
        "expires_at": now,
        "authorized_at": authorized_at or now,
        "undated_grant_id": grant_id if authorized_at is None else None,
        "due_at": due_at,
        "attempt_id": None,
        "lease_until": None,
        "not_before": None,
        "failures": 0,
        "refreshed_at": None,
        "ended_at": None,
        "reminded_days": None,
    }
