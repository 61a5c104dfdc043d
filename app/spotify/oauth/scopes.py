"""Which scopes an authorization requests in addition to SPOTIFY_SCOPES."""

from collections.abc import Iterable

from app.spotify.session_connection import current_connection
from config import Config


def are_granted(scopes: Iterable[str]) -> bool:
    """Return whether the session's connection has these scopes. Without one, the question is open."""
    spotify_user = current_connection()
    return spotify_user is None or set(scopes) <= set(spotify_user.token.scopes)


def optional_scopes(config: Config, asked: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes that are asked for, and those that the connection has been granted before.

    A new grant has only what was requested for it. Scopes that are in neither setting are left out, because
    Spotify rejects a whole request for one that it has retired.
    """
    spotify_user = current_connection()
    wanted = {*asked, *(spotify_user.token.scopes if spotify_user is not None else ())}
    optional = dict.fromkeys(config.spotify_optional_scopes)
    return tuple(scope for scope in optional if scope in wanted and scope not in config.spotify_scopes)
