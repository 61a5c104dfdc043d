"""Who may read and change which playlist."""

from __future__ import annotations

from sandbox.api.blueprint import caller, granted
from sandbox.api.errors import ApiError, forbidden, not_found
from sandbox.catalog import Playlist
from sandbox.context import sandbox
from sandbox.items import is_well_formed

MODIFY = ("playlist-modify-public", "playlist-modify-private")


def known_playlist(item_id: str) -> Playlist | None:
    """Return a playlist; None if there is none."""
    music = sandbox().music
    if item_id not in music.playlists and sandbox().settings.invents and is_well_formed(item_id):
        return music.invent_playlist(item_id)
    return music.playlists.get(item_id)


def find_playlist(item_id: str) -> Playlist:
    """Return a playlist.

    Raises:
        ApiError: 400, if the id is malformed; 404, if it is unknown.
    """
    if not is_well_formed(item_id):
        raise ApiError(400, "Invalid base62 id")
    playlist = known_playlist(item_id)
    if playlist is None:
        raise not_found()
    return playlist


def is_open(playlist: Playlist) -> bool:
    """Return whether the caller may see the items. Apps from before 2026 may see all."""
    person = caller().account_id
    shared = playlist.collaborative and person in playlist.followers
    return playlist.owner == person or shared or sandbox().settings.mode != "dev2026"


def changeable_playlist(item_id: str) -> Playlist:
    """Return a playlist that the caller may change.

    Raises:
        ApiError: 403, if it belongs to someone else or the scope is missing; 404, if it is unknown.
    """
    playlist = find_playlist(item_id)
    person = caller().account_id
    if playlist.owner != person and not (playlist.collaborative and person in playlist.followers):
        raise forbidden()
    check_scope(public=playlist.public)
    return playlist


def check_scope(*, public: bool) -> None:
    """Check that the token may change playlists of this visibility.

    Raises:
        ApiError: 403, if not.
    """
    if not granted(MODIFY[0] if public else MODIFY[1]):
        raise ApiError(403, "Insufficient client scope")
