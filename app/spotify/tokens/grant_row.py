"""Writes to a grant's row, if no one else has written to it since it was read."""

from typing import cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.models import AccessToken
from app.spotify.tokens.transitions import Values

# Without the ORM, which takes ten times as long for a statement.
grants = cast("sa.Table", AccessToken.__table__)

_COMPARE_AND_SWAP = sa.update(grants).where(
    grants.c.id == sa.bindparam("same_id"),
    grants.c.grant_id == sa.bindparam("same_grant_id"),
    grants.c.generation == sa.bindparam("same_generation"),
)


def compare_and_swap(
    db: Session, row: AccessToken, values: Values, *conditions: sa.ColumnElement[bool]
) -> bool:
    """Write to a grant's row if it still has the grant and the generation that were read. Returns whether."""
    version = {"same_id": row.id, "same_grant_id": row.grant_id, "same_generation": row.generation}
    updated = db.connection().execute(_COMPARE_AND_SWAP.where(*conditions), {**version, **values})
    return updated.rowcount == 1
