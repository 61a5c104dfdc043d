"""Users, their links to Spotify, the tokens of each, and every attempt to refresh one

Revision ID: 0001
Revises:
Create Date: 2026-11-22
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def moment() -> sa.types.TypeEngine[object]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def exact(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("username", exact(64), nullable=False),
        sa.Column("email", exact(254), nullable=False),
        sa.Column("email_verified_at", moment(), nullable=True),
        sa.Column("password_hash", exact(255), nullable=False),
        sa.Column("created_at", moment(), nullable=False),
        sa.Column("updated_at", moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("username", name="uq_users_username"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sqlite_autoincrement=True,
        mysql_charset="utf8mb4",
    )
    op.create_table(
        "spotify_users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("spotify_id", exact(255), nullable=False),
        sa.Column("account_id", exact(255), nullable=True),
        sa.Column("display_name", sa.String(255), nullable=True),
        sa.Column("image_url", sa.String(2048), nullable=True),
        sa.Column("product", sa.String(32), nullable=True),
        sa.Column("country", sa.String(8), nullable=True),
        sa.Column("created_at", moment(), nullable=False),
        sa.Column("updated_at", moment(), nullable=False),
        sa.Column("last_used_at", moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_spotify_users"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_spotify_users_user_id_users", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("user_id", name="uq_spotify_users_user_id"),
        sa.UniqueConstraint("spotify_id", name="uq_spotify_users_spotify_id"),
        sa.UniqueConstraint("account_id", name="uq_spotify_users_account_id"),
        sqlite_autoincrement=True,
        mysql_charset="utf8mb4",
    )
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("spotify_user_id", sa.Integer(), nullable=False),
        sa.Column("grant_id", exact(32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("state", exact(32), nullable=False),
        sa.Column("access_token", sa.LargeBinary(16384), nullable=False),
        sa.Column("refresh_token", sa.LargeBinary(16384), nullable=False),
        sa.Column("scope", sa.String(2048), nullable=False),
        sa.Column("expires_at", moment(), nullable=False),
        sa.Column("authorized_at", moment(), nullable=False),
        sa.Column("attempt_id", exact(32), nullable=True),
        sa.Column("lease_until", moment(), nullable=True),
        sa.Column("not_before", moment(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("refreshed_at", moment(), nullable=True),
        sa.Column("created_at", moment(), nullable=False),
        sa.Column("updated_at", moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_tokens"),
        sa.ForeignKeyConstraint(
            ["spotify_user_id"],
            ["spotify_users.id"],
            name="fk_access_tokens_spotify_user_id_spotify_users",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("spotify_user_id", name="uq_access_tokens_spotify_user_id"),
        sqlite_autoincrement=True,
        mysql_charset="utf8mb4",
    )
    op.create_index("ix_access_tokens_state_expires_at", "access_tokens", ["state", "expires_at"])
    op.create_table(
        "token_refreshes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("spotify_user_id", sa.Integer(), nullable=False),
        sa.Column("grant_id", exact(32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("attempt_id", exact(32), nullable=False),
        sa.Column("outcome", exact(32), nullable=True),
        sa.Column("effective", sa.Integer(), nullable=True),
        sa.Column("started_at", moment(), nullable=False),
        sa.Column("finished_at", moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_token_refreshes"),
        sa.UniqueConstraint("attempt_id", name="uq_token_refreshes_attempt_id"),
        sa.UniqueConstraint(
            "spotify_user_id", "grant_id", "generation", "effective", name="uq_token_refreshes_effective"
        ),
        sqlite_autoincrement=True,
        mysql_charset="utf8mb4",
    )
    op.create_index("ix_token_refreshes_started_at", "token_refreshes", ["started_at"])


def downgrade() -> None:
    op.drop_table("token_refreshes")
    op.drop_table("access_tokens")
    op.drop_table("spotify_users")
    op.drop_table("users")
