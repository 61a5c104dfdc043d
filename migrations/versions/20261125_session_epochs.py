"""Random session epochs, so that after a restore an old session cannot belong to another person

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-25
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BATCH = 1000
_users = sa.table("users", sa.column("id", sa.Integer()), sa.column("session_epoch", sa.BigInteger()))


def upgrade() -> None:
    bind = op.get_bind()
    # SQLite stores 64 bits in any integer column, and would have to recreate the table.
    if bind.dialect.name != "sqlite":
        op.alter_column(
            "users",
            "session_epoch",
            type_=sa.BigInteger(),
            existing_type=sa.Integer(),
            existing_nullable=False,
            existing_server_default="0",
        )
    change = (
        sa.update(_users)
        .where(_users.c.id == sa.bindparam("user_id"))
        .values(session_epoch=sa.bindparam("epoch"))
    )
    last = 0
    while ids := list(
        bind.scalars(sa.select(_users.c.id).where(_users.c.id > last).order_by(_users.c.id).limit(_BATCH))
    ):
        bind.execute(change, [{"user_id": user_id, "epoch": secrets.randbits(64) - 2**63} for user_id in ids])
        last = ids[-1]


def downgrade() -> None:
    # The release before this one counts up from here.
    op.execute("UPDATE users SET session_epoch = ABS(session_epoch % 2147483647)")
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column(
            "users",
            "session_epoch",
            type_=sa.Integer(),
            existing_type=sa.BigInteger(),
            existing_nullable=False,
            existing_server_default="0",
        )
