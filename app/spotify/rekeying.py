"""Moving stored tokens to the newest key, while everything goes on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from app.database import reading, writing
from app.models import AccessToken
from app.parts import parts
from app.sealing import Unreadable

log = logging.getLogger(__name__)

BATCH = 500


@dataclass
class Moved:
    """How far it has come: rows looked at, sealed anew, and not readable with any of our keys."""

    seen: int = 0
    sealed: int = 0
    unreadable: int = 0


def rotate_keys(progress: Callable[[Moved], None]) -> Moved:
    """Seal every token with the newest key. `progress` is called after each batch.

    It may be stopped at any time and run again: what has been moved is passed over. A row that a
    refresh or a new consent writes meanwhile is left to them; they seal with the newest key too.
    """
    moved, last_id = Moved(), 0
    while True:
        with reading() as db:
            after = (
                sa.select(AccessToken).where(AccessToken.id > last_id).order_by(AccessToken.id).limit(BATCH)
            )
            rows = list(db.scalars(after))
        if not rows:
            return moved
        for row in rows:
            _move(row, moved)
        moved.seen += len(rows)
        last_id = rows[-1].id
        progress(moved)


def _move(row: AccessToken, moved: Moved) -> None:
    sealer = parts().sealer
    old = {"access_token": row.access_token, "refresh_token": row.refresh_token}
    new: dict[str, bytes] = {}
    try:
        for column, sealed in old.items():
            if not sealer.is_newest(sealed):
                place = (column, row.spotify_user_id, row.grant_id)
                new[column] = sealer.seal(sealer.open(sealed, *place), *place)
    except Unreadable:
        # Reported and left alone: the key it needs may only be missing.
        log.error("token_unreadable", extra={"link": row.spotify_user_id})
        moved.unreadable += 1
        return
    if not new:
        return
    unchanged = (getattr(AccessToken, column) == sealed for column, sealed in old.items())
    with writing() as db:
        done = db.execute(
            sa.update(AccessToken)
            .where(AccessToken.id == row.id, AccessToken.grant_id == row.grant_id, *unchanged)
            .values(new)
        )
    moved.sealed += done.rowcount  # type: ignore[attr-defined]
