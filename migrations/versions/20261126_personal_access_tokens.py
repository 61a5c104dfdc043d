"""Personal access tokens

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-26
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLE = "personal_access_tokens"


def moment() -> sa.types.TypeEngine[object]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def code(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")


def exact(length: int) -> sa.types.TypeEngine[str]:
    is_mariadb = getattr(op.get_bind().dialect, "is_mariadb", False)
    collation = f"utf8mb4_{'nopad' if is_mariadb else '0900'}_bin"
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation=collation), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column(
            "user_id",
            sa.Integer(),
            sa.ForeignKey("users.id", name=f"fk_{TABLE}_user_id_users", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("token_hash", code(64), nullable=False),
        sa.Column("name", exact(100), nullable=False),
        sa.Column("rights", code(100), nullable=False),
        sa.Column("session_epoch", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("expires_at", moment(), nullable=False),
        sa.Column("created_at", moment(), nullable=False),
        sa.Column("last_used_at", moment(), nullable=True),
        sa.Column("last_used_ip", code(45), nullable=True),
        sa.UniqueConstraint("token_hash", name=f"uq_{TABLE}_token_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index(f"ix_{TABLE}_user_id", TABLE, ["user_id"])
    op.create_index(f"ix_{TABLE}_expires_at", TABLE, ["expires_at"])


def downgrade() -> None:
    op.drop_table(TABLE)
