"""The keys that stored tokens are sealed with: which are in use, and how to move to the newest."""

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from app.infra.database import db, reading, run_in_transaction
from app.infra.encryption import DecryptionError
from app.models import AccessToken
from app.services import services

log = logging.getLogger(__name__)

# So many rows are locked together, for some milliseconds.
BATCH = 100
_COLUMNS = {
    "access_token": "access_token",
    "refresh_token": "refresh_token",
    "spare_refresh_token": "refresh_token",  # sealed as what it may become
}


# A release from before the column may still be writing, during an update. The value names its key too.
_UNNAMED = sa.and_(AccessToken.key_id.is_(None), AccessToken.refresh_token.is_not(None))
_KEY_IN_TOKEN = sa.func.lower(sa.func.hex(sa.func.substr(AccessToken.refresh_token, 2, 4)))


@dataclass
class RotationProgress:
    """How far it has come: rows to move at the start, looked at, sealed anew, and not readable."""

    total: int = 0
    seen: int = 0
    sealed: int = 0
    unreadable: int = 0


def keys_in_use() -> dict[str, int]:
    """How many rows are sealed with each key, by the key's id."""
    found: Counter[str] = Counter()
    with reading() as session:
        for key, which in ((AccessToken.key_id, AccessToken.key_id.is_not(None)), (_KEY_IN_TOKEN, _UNNAMED)):
            for key_id, count in session.execute(sa.select(key, sa.func.count()).where(which).group_by(key)):
                found[str(key_id)] += count
    return dict(found)


def missing_keys() -> dict[str, int]:
    """Keys that rows are sealed with and that are not among ours, with the number of those rows."""
    ours = services().token_cipher.key_ids
    return {key_id: count for key_id, count in keys_in_use().items() if key_id not in ours}


def require_keys(app: Flask) -> None:
    """Refuse the start, with exit status 3, while a key is missing that stored tokens are sealed with.

    While the database is away, or has no schema yet, nothing is refused: that is for others to tell.
    """
    with app.app_context():
        try:
            missing = missing_keys()
        except sa.exc.SQLAlchemyError as error:
            log.warning("keys_not_checked", extra={"reason": type(error).__name__})
            return
        finally:
            db.engine.dispose()  # Opened before a server forks, it would be shared by its workers.
    if missing:
        keys = ", ".join(f"{key_id} ({count} rows)" for key_id, count in missing.items())
        sys.stderr.write(
            f"Backline cannot start: TOKEN_ENCRYPTION_KEYS lacks a key that stored tokens are sealed with: "
            f"{keys}.\nPut it back, behind the newest; `flask tokens rotate-keys` then makes it needless.\n"
        )
        sys.exit(3)


def rotate_keys(progress: Callable[[RotationProgress], None]) -> RotationProgress:
    """Seal every token with the newest key. `progress` is called after each batch.

    It may be stopped at any time and run again: what has been moved is passed over. A row that a
    refresh or a new consent writes meanwhile is left to them; they seal with the newest key too.
    """
    moved, last_id = RotationProgress(total=_left()), 0
    while rows := _next_batch(last_id):
        sealed_anew = {row.id: new for row in rows if (new := _reencrypted(row)) is not None}
        moved.unreadable += len(rows) - len(sealed_anew)
        moved.sealed += run_in_transaction(lambda session: _write(session, rows, sealed_anew))  # noqa: B023
        moved.seen += len(rows)
        last_id = rows[-1].id
        progress(moved)
    log.info("keys_rotated", extra={"sealed": moved.sealed, "unreadable": moved.unreadable})
    return moved


def _left() -> int:
    newest = services().token_cipher.newest_key_id
    return sum(count for key_id, count in keys_in_use().items() if key_id != newest)


def _next_batch(last_id: int) -> list[AccessToken]:
    other = sa.or_(AccessToken.key_id != services().token_cipher.newest_key_id, _UNNAMED)
    older = sa.and_(other, AccessToken.id > last_id)
    with reading() as session:
        return list(
            session.scalars(sa.select(AccessToken).where(older).order_by(AccessToken.id).limit(BATCH))
        )


def _reencrypted(row: AccessToken) -> dict[str, object] | None:
    """A row's columns under the newest key. None if one cannot be read; that is reported, and left alone."""
    token_cipher = services().token_cipher
    new: dict[str, object] = {"key_id": token_cipher.newest_key_id}
    try:
        for column, sealed_as in _COLUMNS.items():
            old: bytes | None = getattr(row, column)
            if old is not None:
                place = (sealed_as, row.spotify_user_id, row.grant_id)
                new[column] = token_cipher.encrypt(token_cipher.decrypt(old, *place), *place)
    except DecryptionError:
        # The key it needs may only be missing.
        log.error("token_unreadable", extra={"link": row.spotify_user_id})
        return None
    return new


def _write(session: Session, rows: list[AccessToken], new: dict[int, dict[str, object]]) -> int:
    """Write the rows that are as they were read. Returns how many."""
    written = 0
    for row in rows:
        if row.id in new:
            unchanged = (getattr(AccessToken, column) == getattr(row, column) for column in _COLUMNS)
            same = sa.update(AccessToken).where(AccessToken.id == row.id, *unchanged)
            written += session.execute(same.values(new[row.id])).rowcount  # type: ignore[attr-defined]
    return written
