"""Requires that every transaction of the product announces which remembered rows it changes.

It watches all statements of this process. If a test changes such rows itself, as an operator would by hand,
all versions in Redis are deleted instead, so that the next request reads the rows.
"""

import re
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.infra.row_versions import announced
from app.models.snapshots import ConnectionSnapshot, TokenSnapshot, UserSnapshot
from tests.helpers.servers import ROOT

REMEMBERED = {
    "users": {*UserSnapshot.__dataclass_fields__},
    "spotify_users": {*ConnectionSnapshot.__dataclass_fields__},
    "access_tokens": {*TokenSnapshot.__dataclass_fields__},
}
# Redis servers that the tests use.
STORES: list[redis.Redis] = []

_WRITE = re.compile(
    r"\s*(INSERT INTO|UPDATE|DELETE FROM) [`\"]?(users|spotify_users|access_tokens)\b", re.IGNORECASE
)
_SET = re.compile(r"\bSET (.*?)(?: WHERE |$)", re.IGNORECASE | re.DOTALL)
_COLUMN = re.compile(r"(?:^|,)\s*(?:\w+\.)?[`\"]?(\w+)[`\"]?\s*=")
# Plumbing, through which both the product and the tests go.
_PLUMBING = {ROOT / "app/infra/database.py", ROOT / "app/infra/row_versions.py", Path(__file__)}


# Statements that were not announced, also those in threads whose errors no test sees.
NOT_ANNOUNCED: list[str] = []


class NotAnnounced(BaseException):
    """Not an `Exception`, so that the product cannot turn it into a response."""


def watch() -> None:
    """Watch the transactions of this process until it ends."""
    event.listen(Session, "after_begin", _remember_session)
    event.listen(Session, "after_commit", _forget_versions)
    event.listen(sa.Engine, "after_cursor_execute", _note_write)
    event.listen(sa.Engine, "commit", _require_announcement)
    event.listen(sa.Engine, "rollback", _forget_writes)


def written(statement: str) -> str | None:
    """Return the table in which a statement changes what is remembered, if any."""
    found = _WRITE.match(statement)
    if found is None:
        return None
    kind, table = found[1].upper(), found[2].lower()
    if kind == "INSERT INTO" and table == "users":
        return None  # no one can have read it before
    if kind != "UPDATE":
        return table
    assignments = _SET.search(statement)
    columns = {*_COLUMN.findall(assignments[1])} if assignments is not None else set()
    return table if columns & REMEMBERED[table] else None


def _remember_session(session: Session, _transaction: object, connection: sa.Connection) -> None:
    connection.info["session"] = weakref.ref(session)


def _note_write(
    connection: sa.Connection, cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool
) -> None:
    table = written(statement)
    if table is not None and cursor.rowcount != 0:
        connection.info.setdefault("writes", {})[table] = statement


def _forget_writes(connection: sa.Connection) -> None:
    if not connection.invalidated:
        connection.info.pop("writes", None)
        connection.info.pop("session", None)


def _require_announcement(connection: sa.Connection) -> None:
    writes = connection.info.pop("writes", None)
    session = connection.info.pop("session", lambda: None)()
    if not writes:
        return
    if not _is_from_product():
        forget_versions()
        if session is not None:
            session.info["written_by_test"] = True
        return
    versions = announced(session) if session is not None else set()
    for table, statement in writes.items():
        kinds = ("version:user:",) if table == "users" else ("version:connection:", "version:user:")
        if not any(version.startswith(kinds) for version in versions):
            NOT_ANNOUNCED.append(statement)
            raise NotAnnounced(statement)


def _forget_versions(session: Session) -> None:
    if session.info.pop("written_by_test", False):
        forget_versions()


def forget_versions() -> None:
    """Delete all versions, so that the next request reads the rows."""
    for store in STORES:
        keys: Any = store.keys("version:*")
        if keys:
            store.delete(*keys)


def _is_from_product() -> bool:
    for path in _callers(sys._getframe(1)):
        if path in _PLUMBING or ".venv" in path.parts or not path.is_relative_to(ROOT):
            continue
        return path.is_relative_to(ROOT / "app")
    return False


def _callers(frame: FrameType | None) -> Iterator[Path]:
    while frame is not None:
        yield Path(frame.f_code.co_filename)
        frame = frame.f_back
