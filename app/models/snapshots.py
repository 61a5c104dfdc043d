"""What most requests need of an account, its connection, and the grant: read at once, and immutable."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.infra.database import database_now
from app.models.access_token import AccessToken, is_valid_for, six_months_after
from app.models.spotify_user import SpotifyUser
from app.models.user import User


@dataclass(frozen=True, slots=True)
class UserSnapshot:
    """An account."""

    id: int
    username: str
    email: str
    email_verified_at: datetime | None
    pending_email: str | None
    session_epoch: int
    disabled_at: datetime | None
    created_at: datetime

    @property
    def email_verified(self) -> bool:
        """Whether the owner has confirmed the address."""
        return self.email_verified_at is not None

    @property
    def disabled(self) -> bool:
        """Whether an operator has disabled the account."""
        return self.disabled_at is not None


@dataclass(frozen=True, slots=True)
class ReadTime:
    """When rows were read: the database's time, and `time.monotonic` before the statement."""

    database: datetime
    monotonic: float

    def now(self) -> datetime:
        """Return the time of the database's clock without asking it, ahead by one statement at most."""
        return self.database + timedelta(seconds=time.monotonic() - self.monotonic)


@dataclass(frozen=True, slots=True)
class TokenSnapshot:
    """A connection's grant. `access_token` is encrypted."""

    spotify_user_id: int
    grant_id: str
    generation: int
    state: str
    access_token: bytes | None = field(repr=False)
    scope: str
    expires_at: datetime
    authorized_at: datetime
    refreshed_at: datetime | None
    read_time: ReadTime
    # What is derived from the row and takes time, such as the decrypted token. Threads may do it twice.
    derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def scopes(self) -> list[str]:
        """The granted scopes."""
        return self.scope.split()

    @property
    def reauthorize_by(self) -> datetime:
        """When Spotify ends the grant."""
        return six_months_after(self.authorized_at)

    def is_valid_for(self, lead: timedelta, *, now: datetime) -> bool:
        """Return whether the access token is still valid after `lead`."""
        return is_valid_for(self, lead, now=now)


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """A connection. `user_id` is None if a visitor made it."""

    id: int
    user_id: int | None
    spotify_id: str
    account_id: str | None
    display_name: str | None
    image_url: str | None
    last_used_at: datetime
    token: TokenSnapshot


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An account and its connection, or a connection and its owner, as one statement has read them."""

    user: UserSnapshot | None
    connection: ConnectionSnapshot | None
    # Responses that depend on nothing else.
    bodies: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)


_USER = tuple(getattr(User, name) for name in UserSnapshot.__dataclass_fields__)
_CONNECTION = tuple(
    getattr(SpotifyUser, name) for name in ConnectionSnapshot.__dataclass_fields__ if name != "token"
)
_TOKEN = tuple(
    getattr(AccessToken, name)
    for name in TokenSnapshot.__dataclass_fields__
    if name not in ("read_time", "derived")
)
_COLUMNS = sa.select(database_now(), *_USER, *_CONNECTION, *_TOKEN)
_TOKEN_OF_CONNECTION = AccessToken.spotify_user_id == SpotifyUser.id

# A connection without tokens counts as none, but can be authorized again.
_WITH_TOKEN = sa.join(SpotifyUser.__table__, AccessToken.__table__, _TOKEN_OF_CONNECTION)
_OF_USER = (
    _COLUMNS.select_from(User.__table__.outerjoin(_WITH_TOKEN, SpotifyUser.user_id == User.id))
    .where(User.id == sa.bindparam("id"))
    .set_label_style(sa.LABEL_STYLE_NONE)
)
_OF_CONNECTION = (
    _COLUMNS.select_from(_WITH_TOKEN.outerjoin(User.__table__, SpotifyUser.user_id == User.id))
    .where(SpotifyUser.id == sa.bindparam("id"))
    .set_label_style(sa.LABEL_STYLE_NONE)
)


def of_user(user_id: int) -> sa.Select[Any]:
    """Return the statement for the snapshot of an account and its connection."""
    return _OF_USER.params(id=user_id)


def of_connection(spotify_user_id: int) -> sa.Select[Any]:
    """Return the statement for the snapshot of a connection and its owner."""
    return _OF_CONNECTION.params(id=spotify_user_id)


def from_row(row: Any, began_at: float) -> Snapshot:
    """Return the snapshot of a statement that began then (`time.monotonic`)."""
    now, *values = row
    user, rest = values[: len(_USER)], values[len(_USER) :]
    connection, token = rest[: len(_CONNECTION)], rest[len(_CONNECTION) :]
    owner = UserSnapshot(*user) if user[0] is not None else None
    if connection[0] is None:
        return Snapshot(owner, None)
    token.append(ReadTime(now, began_at))
    connection.append(TokenSnapshot(*token))
    return Snapshot(owner, ConnectionSnapshot(*connection))
