"""The connection that the current session uses."""

import msgspec
from flask import session

from app.models.snapshots import Connection, ConnectionSnapshot
from app.web import identity, sessions
from app.web.access import current_user


class ConnectionRef(msgspec.Struct, frozen=True):
    """The part of a connection that a session stores. `owner_epoch` is for visitors only."""

    spotify_user_id: int
    grant_id: str
    owner_epoch: int | None

    @classmethod
    def of(cls, spotify_user: Connection, owner_epoch: int | None = None) -> "ConnectionRef":
        """Describe a connection with its current grant."""
        return cls(spotify_user.id, spotify_user.token.grant_id, owner_epoch)


def current_connection() -> ConnectionSnapshot | None:
    """Return the connection that this request may use: the signed-in user's, or the visitor's.

    A visitor's session ends with the grant that they consented to. If the connection has an owner, it also
    ends with the owner's sessions.
    """
    snapshot = identity.current_snapshot()
    if snapshot is None or snapshot.connection is None:
        return None
    connection, current = snapshot.connection, identity.current_session()
    if current_user() is not None:
        return connection
    if current.get("user_id") is not None:  # one that has ended is not a visitor's
        return None
    owner_epoch = snapshot.user.session_epoch if snapshot.user is not None else None
    if connection.token.grant_id != current.get("grant_id") or owner_epoch != current.get("owner_epoch"):
        return None
    return connection


def required_grant() -> str | None:
    """Return the only grant that a visitor's request may use. None for an owner, who may use any."""
    grant_id: str | None = None if current_user() is not None else session.get("grant_id")
    return grant_id


def attach_to_session(connection: ConnectionRef) -> None:
    """Let this session use the connection."""
    session["spotify_user_id"] = connection.spotify_user_id
    session["grant_id"], session["owner_epoch"] = connection.grant_id, connection.owner_epoch
    if session.get("user_id") is None:
        sessions.record_client()  # the connection's owner sees the session
    identity.forget()


def detach_from_session() -> None:
    """Remove the connection from this session."""
    if session.get("spotify_user_id") is not None:
        session["spotify_user_id"] = session["grant_id"] = session["owner_epoch"] = None
    identity.forget()
