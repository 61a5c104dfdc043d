"""The connection that a session uses, with a token that works."""

from flask import session

from app.errors import SpotifyNotConnected
from app.models import GrantState
from app.models.snapshots import ConnectionSnapshot
from app.spotify import connections
from app.spotify.applications.lookup import Applications
from app.spotify.session_connection import (
    ConnectionRef,
    attach_to_session,
    current_connection,
    required_grant,
)
from app.spotify.tokens.refresh import GrantEnded, version_of
from app.spotify.tokens.service import TokenService
from app.web import identity


class UsableConnection:
    """Finds the connection that the current session uses."""

    def __init__(self, tokens: TokenService, applications: Applications) -> None:
        self._tokens = tokens
        self._applications = applications

    def find(self) -> ConnectionSnapshot | None:
        """Return the connection that this session uses, with its token refreshed if necessary.

        Raises:
            GrantEnded: Only a new consent helps. Spotify has ended the grant, or it was issued to the
                application of this server, which has none anymore.
            SpotifyUnavailable, SpotifyMisconfigured: The token cannot be refreshed now.
        """
        spotify_user = current_connection()
        if spotify_user is None:
            return None
        can_use = self._applications.can_use(spotify_user.token)
        if spotify_user.token.state == GrantState.REAUTHORIZATION_REQUIRED or not can_use:
            raise GrantEnded
        try:
            token = self._tokens.access_token_for(
                spotify_user.id, grant_id=required_grant(), known=spotify_user.token
            )
        except SpotifyNotConnected:
            return None  # it has just been disconnected elsewhere
        if session.get("spotify_user_id") != spotify_user.id:
            attach_to_session(ConnectionRef.of(spotify_user))
        connections.touch(spotify_user)
        if token.version != version_of(spotify_user.token):
            identity.forget()  # it has been refreshed
        return current_connection()
