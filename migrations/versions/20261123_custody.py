"""Token custody: when to look again, what has ended, which key sealed it, and the breaker

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-23
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def moment() -> sa.types.TypeEngine[object]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def exact(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")


def sealed() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(16384)


def upgrade() -> None:
    with op.batch_alter_table("access_tokens", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.alter_column("access_token", existing_type=sealed(), nullable=True)
        table.alter_column("refresh_token", existing_type=sealed(), nullable=True)
        table.add_column(sa.Column("spare_refresh_token", sealed(), nullable=True))
        table.add_column(sa.Column("key_id", exact(8), nullable=True))
        table.add_column(sa.Column("due_at", moment(), nullable=True))
        table.add_column(sa.Column("ended_at", moment(), nullable=True))
        table.add_column(sa.Column("reminded_days", sa.Integer(), nullable=True))
        table.create_index("ix_access_tokens_due_at", ["due_at"])
        table.create_index("ix_access_tokens_key_id", ["key_id"])
        table.create_index("ix_access_tokens_authorized_at", ["authorized_at"])
        table.create_index("ix_access_tokens_state_ended_at", ["state", "ended_at"])
        table.drop_index("ix_access_tokens_state_expires_at")
    # What a downgrade has left of erased tokens is nothing again.
    op.execute(
        "UPDATE access_tokens SET access_token = NULL, refresh_token = NULL WHERE LENGTH(refresh_token) = 0"
    )
    # A sealed value names its key in bytes 2 to 5. The refresh token is the older of the two.
    op.execute(
        "UPDATE access_tokens SET key_id = LOWER(HEX(SUBSTR(refresh_token, 2, 4))) "
        "WHERE refresh_token IS NOT NULL"
    )
    sqlite = op.get_bind().dialect.name == "sqlite"
    quarter_of_an_hour_before = (
        "strftime('%Y-%m-%d %H:%M:%f000', expires_at, '-15 minutes')"
        if sqlite
        else "expires_at - INTERVAL 15 MINUTE"
    )
    op.execute(
        f"UPDATE access_tokens SET due_at = COALESCE(not_before, {quarter_of_an_hour_before}) "  # noqa: S608 # nosec B608
        "WHERE state <> 'reauthorization_required'"
    )
    op.execute("UPDATE access_tokens SET ended_at = updated_at WHERE state = 'reauthorization_required'")
    op.create_table(
        "breakers",
        sa.Column("name", exact(32), nullable=False),
        sa.Column("opened_at", moment(), nullable=False),
        sa.Column("closed_at", moment(), nullable=True),
        sa.Column("probe_at", moment(), nullable=False),
        sa.Column("successes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_breakers"),
        mysql_charset="utf8mb4",
    )


def downgrade() -> None:
    op.drop_table("breakers")
    # What was erased cannot come back; an empty value does not open, which is what it should do.
    op.execute("UPDATE access_tokens SET access_token = '' WHERE access_token IS NULL")
    op.execute("UPDATE access_tokens SET refresh_token = '' WHERE refresh_token IS NULL")
    with op.batch_alter_table("access_tokens", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_index("ix_access_tokens_state_ended_at")
        table.drop_index("ix_access_tokens_authorized_at")
        table.drop_index("ix_access_tokens_key_id")
        table.drop_index("ix_access_tokens_due_at")
        table.create_index("ix_access_tokens_state_expires_at", ["state", "expires_at"])
        for name in ("reminded_days", "ended_at", "due_at", "key_id", "spare_refresh_token"):
            table.drop_column(name)
        table.alter_column("refresh_token", existing_type=sealed(), nullable=False)
        table.alter_column("access_token", existing_type=sealed(), nullable=False)
