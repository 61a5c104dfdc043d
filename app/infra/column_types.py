"""Types of columns that store values exactly."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import DATETIME, VARCHAR


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime, stored as UTC with microseconds.

    MySQL's DATETIME drops the offset, and by default the microseconds: DateTime(timezone=True) would return
    12:00 for 12:00+02:00.
    """

    impl = sa.DateTime().with_variant(DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert a value for the database."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert a value from the database."""
        return None if value is None else value.replace(tzinfo=UTC)


class ExactString(sa.types.TypeDecorator[str]):
    """Text from outside, compared exactly, including trailing blanks.

    To MySQL's default collations, `ä` and `A` equal `a`, and often `a ` does too. `app.models.normalization`
    decides which names are the same, and not a column.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Choose the column's type for a database."""
        if dialect.name not in ("mysql", "mariadb"):
            return super().load_dialect_impl(dialect)
        # Both have a collation that compares code points and does not pad, under different names.
        is_mariadb = getattr(dialect, "is_mariadb", False)
        return VARCHAR(self.length, collation=f"utf8mb4_{'nopad' if is_mariadb else '0900'}_bin")


def code_string(length: int) -> sa.String:
    """Return the type for text that we generate, without blanks. It is compared by code point."""
    return sa.String(length).with_variant(VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb")
