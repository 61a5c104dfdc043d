"""Imported grants: without the time of the consent, and without a profile

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-26
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def moment() -> sa.types.TypeEngine[object]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def code(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")


def upgrade() -> None:
    op.add_column("access_tokens", sa.Column("undated_grant_id", code(32), nullable=True))
    op.add_column("spotify_users", sa.Column("profile_due_at", moment(), nullable=True))
    op.create_index("ix_spotify_users_profile_due_at", "spotify_users", ["profile_due_at"])


def downgrade() -> None:
    op.drop_index("ix_spotify_users_profile_due_at", "spotify_users")
    op.drop_column("spotify_users", "profile_due_at")
    op.drop_column("access_tokens", "undated_grant_id")
