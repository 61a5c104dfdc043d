"""Applications at Spotify that people bring themselves

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-26
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLE = "spotify_apps"
COLUMN = "spotify_app_id"
INDEX = f"ix_spotify_users_{COLUMN}"
FOREIGN_KEY = f"fk_spotify_users_{COLUMN}_{TABLE}"


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
            "owner_id",
            sa.Integer(),
            sa.ForeignKey("users.id", name=f"fk_{TABLE}_owner_id_users", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("client_id", exact(255), nullable=False),
        sa.Column("client_secret", sa.LargeBinary(16_384), nullable=True),
        sa.Column("key_id", code(8), nullable=True),
        sa.Column("state", code(32), nullable=False),
        sa.Column("paused_until", moment(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", moment(), nullable=True),
        sa.Column("created_at", moment(), nullable=False),
        sa.Column("updated_at", moment(), nullable=False),
        sa.UniqueConstraint("owner_id", name=f"uq_{TABLE}_owner_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(f"ix_{TABLE}_key_id", TABLE, ["key_id"])
    op.add_column("access_tokens", sa.Column("client_id", exact(255), nullable=True))
    op.add_column("token_refreshes", sa.Column("spotify_app_id", sa.Integer(), nullable=True))
    add_reference()


def add_reference() -> None:
    """In one statement, so that it is done completely or not at all."""
    references = f"REFERENCES {TABLE} (id) ON DELETE CASCADE"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"ALTER TABLE spotify_users ADD COLUMN {COLUMN} INTEGER CONSTRAINT {FOREIGN_KEY} {references}"
        )
        op.create_index(INDEX, "spotify_users", [COLUMN])
    elif not has_reference():
        # There is nothing to check yet. With checks, InnoDB copies the table, and writes wait.
        op.execute("SET SESSION foreign_key_checks = 0")
        op.execute(
            f"ALTER TABLE spotify_users ADD COLUMN {COLUMN} INTEGER NULL, ADD INDEX {INDEX} ({COLUMN}), "
            f"ADD CONSTRAINT {FOREIGN_KEY} FOREIGN KEY ({COLUMN}) {references}, LOCK = NONE"
        )
        op.execute("SET SESSION foreign_key_checks = 1")


def has_reference() -> bool:
    return COLUMN in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("spotify_users")}


def downgrade() -> None:
    """Ask people again whose grant was issued to their own application: its client id is lost."""
    if has_reference():
        op.execute(
            "UPDATE access_tokens SET state = 'reauthorization_required', ended_at = updated_at, "
            "due_at = NULL WHERE client_id IS NOT NULL"
        )
        if op.get_bind().dialect.name == "sqlite":
            op.drop_index(INDEX, "spotify_users")
            op.execute(f"ALTER TABLE spotify_users DROP COLUMN {COLUMN}")
        else:
            op.execute(
                f"ALTER TABLE spotify_users DROP FOREIGN KEY {FOREIGN_KEY}, DROP INDEX {INDEX}, "
                f"DROP COLUMN {COLUMN}"
            )
    op.drop_column("token_refreshes", "spotify_app_id")
    op.drop_column("access_tokens", "client_id")
    op.drop_table(TABLE)
