"""Connections that sign their owner in

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-26
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null in existing rows, and in those of the previous release: such a connection signs no one in.
    moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    op.add_column("spotify_users", sa.Column("sign_in_since", moment, nullable=True))


def downgrade() -> None:
    op.drop_column("spotify_users", "sign_in_since")
