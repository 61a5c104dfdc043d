"""Lets a migration that was interrupted on MySQL be run again.

MySQL commits each change of the schema by itself, and Alembic stores the revision after a whole migration. So
an interrupted migration is run again from its start. Here, a statement does nothing if the schema already is
as the statement would leave it.

Everything else that a migration does must be repeatable: its UPDATEs, and SQL that it executes as text.
"""

from typing import Any

import sqlalchemy as sa
from alembic.ddl.mysql import MySQLImpl


class ResumableMySQLImpl(MySQLImpl):
    """Replaces Alembic's implementation for MySQL, which finds this one by its `__dialect__`."""

    __dialect__ = "mysql"

    def create_table(self, table: sa.Table, **options: Any) -> None:
        if self._columns(table.name) == {column.name for column in table.columns}:
            for index in table.indexes:
                self.create_index(index)
        else:  # if there is a table with other columns, it is not ours, and this fails
            super().create_table(table, **options)

    def drop_table(self, table: sa.Table, **options: Any) -> None:
        if self._columns(table.name):
            super().drop_table(table, **options)

    def add_column(self, table_name: str, column: sa.Column[Any], **options: Any) -> None:
        if column.name not in self._columns(table_name):
            super().add_column(table_name, column, **options)

    def drop_column(self, table_name: str, column: sa.Column[Any], **options: Any) -> None:
        if column.name in self._columns(table_name):
            super().drop_column(table_name, column, **options)

    def create_index(self, index: sa.Index, **options: Any) -> None:
        if not self._has(index):
            super().create_index(index, **options)

    def drop_index(self, index: sa.Index, **options: Any) -> None:
        if self._has(index):
            super().drop_index(index, **options)

    def _columns(self, table: str) -> set[str]:
        """Return the names of a table's columns: none if there is no such table."""
        inspector = sa.inspect(self.connection)
        found = inspector.get_columns(table) if inspector.has_table(table) else []
        return {column["name"] for column in found}

    def _has(self, index: sa.Index) -> bool:
        found = sa.inspect(self.connection).get_indexes(index.table.name)
        return index.name in {one["name"] for one in found}


class ResumableMariaDBImpl(ResumableMySQLImpl):
    """The same for URLs that begin with `mariadb`."""

    __dialect__ = "mariadb"
