"""Identities: what comes from outside is compared with its trailing blanks

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Every column that is looked up by, or must be unique in, text from outside.
IDENTITIES = {
    # First, so that a downgrade that must fail does so before it has changed anything. Our own rules keep
    # blanks out of the others.
    "spotify_users": {"spotify_id": "VARCHAR(255) {} NOT NULL", "account_id": "VARCHAR(255) {} NULL"},
    "users": {"username": "VARCHAR(64) {} NOT NULL", "email": "VARCHAR(254) {} NOT NULL"},
    # Compared with users.email.
    "one_time_tokens": {"email": "VARCHAR(254) {} NOT NULL"},
    "outgoing_mails": {"recipient": "VARCHAR(320) {} NOT NULL"},
}


def upgrade() -> None:
    dialect = op.get_bind().dialect
    if dialect.name == "sqlite":
        return  # it pads nothing
    collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    found = sa.text("SELECT COUNT(*) FROM information_schema.collations WHERE collation_name = :name")
    if not op.get_bind().scalar(found, {"name": collation}):
        raise SystemExit(
            f"This server lacks the collation {collation}: MySQL 8.0.17 or MariaDB 10.6 is needed."
        )
    _set(collation)


def downgrade() -> None:
    """Fails, and changes nothing, while two rows differ in trailing blanks only."""
    if op.get_bind().dialect.name != "sqlite":
        _set("utf8mb4_bin")


def _set(collation: str) -> None:
    """One statement for each table. Reads go on meanwhile; writes to the table wait."""
    for table, columns in IDENTITIES.items():
        text = f"CHARACTER SET utf8mb4 COLLATE {collation}"
        changes = ", ".join(f"MODIFY {name} {kind.format(text)}" for name, kind in columns.items())
        op.execute(f"ALTER TABLE {table} {changes}")
