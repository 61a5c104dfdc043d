"""Accounts: addresses as they were entered, pending addresses, and accounts that are disabled

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

USERS = ("email_address", "pending_email", "pending_email_address")


def moment() -> sa.types.TypeEngine[object]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def exact(length: int) -> sa.types.TypeEngine[str]:
    is_mariadb = getattr(op.get_bind().dialect, "is_mariadb", False)
    collation = f"utf8mb4_{'nopad' if is_mariadb else '0900'}_bin"
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation=collation), "mysql", "mariadb")


def upgrade() -> None:
    # `users.email` stays as it is: the previous release, which may still be running, compares domains as
    # they are spelled there, and this one finds both spellings.
    for name in USERS:
        op.add_column("users", sa.Column(name, exact(254), nullable=True))
    op.add_column("users", sa.Column("disabled_at", moment(), nullable=True))
    op.add_column("one_time_tokens", sa.Column("email_address", exact(254), nullable=True))
    # A live `email_change` token reserves the address it was sent to.
    op.create_index("ix_one_time_tokens_email", "one_time_tokens", ["email"])


def downgrade() -> None:
    op.drop_index("ix_one_time_tokens_email", "one_time_tokens")
    op.drop_column("one_time_tokens", "email_address")
    for name in ("disabled_at", *USERS):
        op.drop_column("users", name)
