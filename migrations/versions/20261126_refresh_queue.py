"""An index in the order of the refresh queue

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-26
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NAME = "ix_access_tokens_failures_due_at_expires_at"


def upgrade() -> None:
    op.create_index(_NAME, "access_tokens", ["failures", "due_at", "expires_at"])


def downgrade() -> None:
    op.drop_index(_NAME, "access_tokens")
