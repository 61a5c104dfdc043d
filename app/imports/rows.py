"""The rows of an import. Reasons name a member that is wrong, but never repeat its value."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, BinaryIO

import click

from app.models.spotify_user import is_placeholder
from app.models.times import CLOCK_TOLERANCE
from app.spotify.tokens.maintenance import SURELY_ENDED_AFTER

MAX_LINE_BYTES = 65_536
_MAX_LENGTHS = {"username": 64, "email": 254, "spotify_id": 255}
# RFC 6749, appendix A.17 and A.4. Some services separate scopes by commas.
_REFRESH_TOKEN = re.compile(r"[\x20-\x7e]{1,4096}")
_SCOPE = re.compile(r"[\x20-\x7e]{0,2048}")


class RowResult(StrEnum):
    """The result of importing a row."""

    IMPORTED = "imported"
    SKIPPED = "skipped"
    INVALID = "invalid"


@dataclass(frozen=True)
class RowReport:
    """The result of one row, and why it was not imported."""

    row: str
    result: RowResult
    reason: str = ""


@dataclass(frozen=True)
class ImportRow:
    """A refresh token, and whose it is. `row` names the row in reports."""

    row: str
    username: str | None
    email: str | None
    spotify_id: str | None
    refresh_token: str = field(repr=False)
    scope: str = ""
    authorized_at: datetime | None = None  # None if unknown


class SkippedError(Exception):
    """A row is not imported. The message says why."""


class _InvalidRowError(Exception):
    """A row cannot be imported. The message says why."""


def read_json_lines(file: BinaryIO, now: datetime) -> Iterator[ImportRow | RowReport]:
    """Yield a row, or why it is invalid, for each line that is not blank.

    Raises:
        click.ClickException: The file cannot be read.
    """
    number = 0
    while line := _read_line(file):
        number += 1
        name = f"line {number}"
        is_too_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        while is_too_long and (rest := _read_line(file)):
            if rest.endswith(b"\n"):
                break
        if is_too_long:
            yield RowReport(name, RowResult.INVALID, "it is too long")
        elif line.strip():
            yield _parse_line(name, line, now)


def _read_line(file: BinaryIO) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES)
    except OSError as error:
        raise click.ClickException(f"The file cannot be read: {error.strerror}.") from error


def _parse_line(name: str, line: bytes, now: datetime) -> ImportRow | RowReport:
    try:
        members = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return RowReport(name, RowResult.INVALID, "it is not JSON")
    return parse_row(name, members, now)


def parse_row(name: str, members: object, now: datetime) -> ImportRow | RowReport:
    """Return a row, or why it cannot be imported. Other members than those of an `ImportRow` are ignored."""
    try:
        row = _parse(name, members, now)
    except _InvalidRowError as error:
        return RowReport(name, RowResult.INVALID, str(error))
    if row.authorized_at is not None and row.authorized_at <= now - SURELY_ENDED_AFTER:
        return RowReport(
            name, RowResult.SKIPPED, "Spotify has ended it: authorized_at is over six months ago"
        )
    return row


def _parse(name: str, members: object, now: datetime) -> ImportRow:
    if not isinstance(members, dict):
        raise _InvalidRowError("it is not a JSON object")
    identity = {member: _text(members, member) for member in _MAX_LENGTHS}
    if not any(identity.values()):
        raise _InvalidRowError("it has no username, email, or spotify_id")
    if is_placeholder(identity["spotify_id"] or ""):
        raise _InvalidRowError("spotify_id is not the id of a Spotify account")
    refresh_token = members.get("refresh_token")
    if not isinstance(refresh_token, str) or not _REFRESH_TOKEN.fullmatch(refresh_token):
        raise _InvalidRowError("refresh_token is missing or invalid")
    return ImportRow(
        name,
        **identity,
        refresh_token=refresh_token,
        scope=_scope(members.get("scope")),
        authorized_at=_authorized_at(members.get("authorized_at"), now),
    )


def _text(members: dict[str, Any], member: str) -> str | None:
    """Return a text that our columns can store: they reject half of a surrogate pair."""
    value = members.get(member)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _MAX_LENGTHS[member] or not value.isprintable():
        raise _InvalidRowError(
            f"{member} must be text of at most {_MAX_LENGTHS[member]} printable characters"
        )
    return value


def _scope(value: object) -> str:
    if not isinstance(value, str | None) or not _SCOPE.fullmatch(value or ""):
        raise _InvalidRowError("scope must be text with scopes")
    return " ".join((value or "").replace(",", " ").split())


def _authorized_at(value: object, now: datetime) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
        is_valid = moment.tzinfo is not None
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        is_valid = False
    if not is_valid:
        raise _InvalidRowError("authorized_at must be a time as in RFC 3339, such as 2026-11-22T07:00:00Z")
    if moment > now + CLOCK_TOLERANCE:
        raise _InvalidRowError("authorized_at is in the future")
    return moment
