"""What most requests need of an account, its connection, and the grant: read at once, and immutable."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.infra.database import database_now
from app.models.access_token import AccessToken, is_valid_for, six_months_after
from app.models.personal_access_token import MAX_TOKEN_LIFETIME, PersonalAccessToken
from app.models.spotify_user import SpotifyUser
from app.models.times import is_ahead
from app.models.user import User


@dataclass(frozen=True, slots=True)
class UserSnapshot:
    """An account."""

    id: int
    username: str
    email: str
    email_verified_at: datetime | None
    pending_email: str | None
    has_password: bool
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
    client_id: str | None
    state: str
    access_token: bytes | None = field(repr=False)
    scope: str
    expires_at: datetime
    authorized_at: datetime
    undated_grant_id: str | None
    refreshed_at: datetime | None
    read_time: ReadTime
    # What is derived from the row and takes time, such as the decrypted token. Threads may do it twice.
    derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def scopes(self) -> list[str]:
        """The granted scopes."""
        return self.scope.split()

    @property
    def is_undated(self) -> bool:
        """Whether it is unknown when the person consented."""
        return self.undated_grant_id == self.grant_id

    @property
    def reauthorize_by(self) -> datetime | None:
        """When Spotify ends the grant. None if it is undated."""
        return None if self.is_undated else six_months_after(self.authorized_at)

    def is_valid_for(self, lead: timedelta, *, now: datetime) -> bool:
        """Return whether the access token is still valid after `lead`."""
        return is_valid_for(self, lead, now=now)


# A grant: its row, or what most requests need of it.
Grant = AccessToken | TokenSnapshot


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """A connection. `user_id` is None if a visitor made it."""

    id: int
    user_id: int | None
    spotify_app_id: int | None
    spotify_id: str
    account_id: str | None
    display_name: str | None
    image_url: str | None
    sign_in_since: datetime | None
    last_used_at: datetime
    token: TokenSnapshot


# A connection: its row, or what most requests need of it.
Connection = SpotifyUser | ConnectionSnapshot


@dataclass(frozen=True, slots=True)
class PersonalTokenSnapshot:
    """A personal access token."""

    id: int
    rights: str
    session_epoch: int
    expires_at: datetime
    read_time: ReadTime

    def is_valid_for(self, owner: UserSnapshot) -> bool:
        """Return whether the token has neither expired nor ended with its owner's sessions."""
        if self.session_epoch != owner.session_epoch or owner.disabled:
            return False
        return is_ahead(self.expires_at, self.read_time.now(), MAX_TOKEN_LIFETIME)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An account and its connection, or a connection and its owner, as one statement has read them.

    `personal_token` is the token that led to the account, if a request presented one.
    """

    user: UserSnapshot | None
    connection: ConnectionSnapshot | None
    personal_token: PersonalTokenSnapshot | None = None
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
_PERSONAL_TOKEN = tuple(
    getattr(PersonalAccessToken, name)
    for name in PersonalTokenSnapshot.__dataclass_fields__
    if name != "read_time"
)
_COLUMNS = sa.select(database_now(), *_USER, *_CONNECTION, *_TOKEN)
_TOKEN_OF_CONNECTION = AccessToken.spotify_user_id == SpotifyUser.id

# A connection without tokens counts as none, but can be authorized again.
_WITH_TOKEN = sa.join(SpotifyUser.__table__, AccessToken.__table__, _TOKEN_OF_CONNECTION)
_WITH_CONNECTION = sa.outerjoin(User.__table__, _WITH_TOKEN, SpotifyUser.user_id == User.id)
# Statements for `from_row`. By `id`: an account and its connection, or a connection and its owner.
OF_USER = (
    _COLUMNS.select_from(_WITH_CONNECTION)
    .where(User.id == sa.bindparam("id"))
    .set_label_style(sa.LABEL_STYLE_NONE)
)
OF_CONNECTION = (
    _COLUMNS.select_from(_WITH_TOKEN.outerjoin(User.__table__, SpotifyUser.user_id == User.id))
    .where(SpotifyUser.id == sa.bindparam("id"))
    .set_label_style(sa.LABEL_STYLE_NONE)
)
# By `token_hash`: a personal access token, its account, and its connection.
OF_PERSONAL_TOKEN = (
    _COLUMNS.add_columns(*_PERSONAL_TOKEN)
    .select_from(_WITH_CONNECTION.join(PersonalAccessToken, PersonalAccessToken.user_id == User.id))
    .where(PersonalAccessToken.token_hash == sa.bindparam("token_hash"))
    .set_label_style(sa.LABEL_STYLE_NONE)
)


def from_row(row: Any, began_at: float) -> Snapshot:
    """Return the snapshot of a statement that began then (`time.monotonic`)."""
    now, *values = row
    read_time = ReadTime(now, began_at)
    user, rest = values[: len(_USER)], values[len(_USER) :]
    connection, rest = rest[: len(_CONNECTION)], rest[len(_CONNECTION) :]
    token, personal = rest[: len(_TOKEN)], rest[len(_TOKEN) :]
    owner = UserSnapshot(*user) if user[0] is not None else None
    personal_token = PersonalTokenSnapshot(*[*personal, read_time]) if personal else None
    if connection[0] is None:
        return Snapshot(owner, None, personal_token)
    connection.append(TokenSnapshot(*[*token, read_time]))
    return Snapshot(owner, ConnectionSnapshot(*connection), personal_token)
