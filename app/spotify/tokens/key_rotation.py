"""The keys that encrypt tokens and client secrets: which ones are in use, and how to move to the newest."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.errors import SpotifyUnavailable
from app.infra import database
from app.infra.database import reading, run_in_transaction
from app.infra.encryption import DecryptionError, TokenCipher
from app.infra.row_versions import announce
from app.models import AccessToken, SpotifyApp, TokenRefresh
from app.spotify.applications.encryption import decrypt_secret, encrypt_secret
from app.spotify.tokens.encryption import token_context

log = logging.getLogger(__name__)

# Rows that are locked together, for a few milliseconds.
BATCH = 100
# How many values a key may encrypt with random nonces (NIST SP 800-38D section 8.3). A refresh encrypts two.
_MAX_VALUES, _VALUES_PER_REFRESH = 2**32, 2
_RECENT = timedelta(minutes=5)
# Each column, and the name that it is encrypted under: a spare may become the refresh token.
_COLUMNS = {
    "access_token": "access_token",
    "refresh_token": "refresh_token",
    "spare_refresh_token": "refresh_token",
}
# During an update, a release without the column `key_id` may still be writing. The token names its key too.
_WITHOUT_KEY_ID = sa.and_(AccessToken.key_id.is_(None), AccessToken.refresh_token.is_not(None))
_KEY_IN_TOKEN = sa.func.lower(sa.func.hex(sa.func.substr(AccessToken.refresh_token, 2, 4)))


@dataclass
class RotationProgress:
    """Rows to re-encrypt at the start, and how many were examined, re-encrypted, and unreadable."""

    total: int = 0
    seen: int = 0
    reencrypted: int = 0
    unreadable: int = 0


def keys_in_use() -> dict[str, int]:
    """Return the number of rows that each key encrypts, by key id."""
    found: Counter[str] = Counter()
    columns = [(column, column.is_not(None)) for column in (AccessToken.key_id, SpotifyApp.key_id)]
    with reading() as db:
        for key, condition in (*columns, (_KEY_IN_TOKEN, _WITHOUT_KEY_ID)):
            counted = sa.select(key, sa.func.count()).where(condition).group_by(key)
            for key_id, count in db.execute(counted):
                found[str(key_id)] += count
    return dict(found)


def missing_keys(cipher: TokenCipher) -> dict[str, int]:
    """Return the ids of keys that rows need but the cipher lacks, each with the number of its rows."""
    return {key_id: count for key_id, count in keys_in_use().items() if key_id not in cipher.key_ids}


def days_per_key() -> float | None:
    """Return how long a key may be used at the current rate of refreshes, or None if there are none."""
    with reading() as db:
        now = database.db_now(db)
        recent = sa.select(sa.func.count()).where(TokenRefresh.started_at > now - _RECENT)
        count = db.execute(recent).scalar_one()
    return _MAX_VALUES / _VALUES_PER_REFRESH / count * (_RECENT / timedelta(days=1)) if count else None


def rotate_keys(cipher: TokenCipher, progress: Callable[[RotationProgress], None]) -> RotationProgress:
    """Re-encrypt every token and client secret with the newest key. Calls `progress` after each batch.

    It can be stopped at any time and run again; it skips rows that are done. It also skips rows that a
    refresh or a new consent writes in the meantime, because those use the newest key too.
    """
    result, last_id = RotationProgress(total=_count_outdated(cipher)), 0
    while rows := _next_batch(cipher, last_id):
        changes = {row.id: new for row in rows if (new := _reencrypt(cipher, row)) is not None}
        result.unreadable += len(rows) - len(changes)
        result.reencrypted += run_in_transaction(lambda db: _write(db, rows, changes))  # noqa: B023
        result.seen += len(rows)
        last_id = rows[-1].id
        progress(result)
    for app in _outdated_apps(cipher):
        written = _rotate_app(cipher, app)
        result.seen += 1
        result.unreadable += written is None
        result.reencrypted += written or 0
        progress(result)
    log.info("keys_rotated", extra={"reencrypted": result.reencrypted, "unreadable": result.unreadable})
    return result


def _count_outdated(cipher: TokenCipher) -> int:
    return sum(count for key_id, count in keys_in_use().items() if key_id != cipher.newest_key_id)


def _outdated_apps(cipher: TokenCipher) -> list[SpotifyApp]:
    with reading() as db:
        return list(db.scalars(sa.select(SpotifyApp).where(SpotifyApp.key_id != cipher.newest_key_id)))


def _rotate_app(cipher: TokenCipher, app: SpotifyApp) -> int | None:
    """Re-encrypt a client secret that has not changed since it was read. Returns the number of rows written.

    Returns None if it cannot be decrypted.
    """
    try:
        columns = encrypt_secret(cipher, app.id, decrypt_secret(cipher, app))
    except SpotifyUnavailable:
        return None
    same = SpotifyApp.id == app.id, SpotifyApp.client_secret == app.client_secret
    update = sa.update(SpotifyApp).where(*same).values(columns)
    return run_in_transaction(lambda db: db.execute(update).rowcount)  # type: ignore[attr-defined, no-any-return]


def _next_batch(cipher: TokenCipher, last_id: int) -> list[AccessToken]:
    is_outdated = sa.or_(AccessToken.key_id != cipher.newest_key_id, _WITHOUT_KEY_ID)
    batch = sa.select(AccessToken).where(is_outdated, AccessToken.id > last_id)
    with reading() as db:
        return list(db.scalars(batch.order_by(AccessToken.id).limit(BATCH)))


def _reencrypt(cipher: TokenCipher, row: AccessToken) -> dict[str, object] | None:
    """Return a row's columns under the newest key, or None if one of them cannot be decrypted."""
    columns: dict[str, object] = {"key_id": cipher.newest_key_id}
    try:
        for column, encrypted_as in _COLUMNS.items():
            old: bytes | None = getattr(row, column)
            if old is not None:
                context = token_context(row, encrypted_as)
                columns[column] = cipher.encrypt(cipher.decrypt(old, *context), *context)
    except DecryptionError:
        # Leave the row unchanged: its key may only be missing from the settings.
        log.error("token_decryption_failed", extra={"spotify_user_id": row.spotify_user_id})
        return None
    return columns


def _write(db: Session, rows: list[AccessToken], changes: dict[int, dict[str, object]]) -> int:
    """Write the rows that have not changed since they were read. Returns their number."""
    written = 0
    announce(db, connections=[row.spotify_user_id for row in rows], best_effort=True)
    for row in rows:
        if row.id in changes:
            unchanged = (getattr(AccessToken, column) == getattr(row, column) for column in _COLUMNS)
            same = sa.update(AccessToken).where(AccessToken.id == row.id, *unchanged)
            written += db.execute(same.values(changes[row.id])).rowcount  # type: ignore[attr-defined]
    return written
