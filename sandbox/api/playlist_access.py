"""Who may read and change which playlist."""

from __future__ import annotations

from flask import g

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
    return sandbox().settings.mode != "dev2026" or _is_editor(playlist, g.token.grant.person)


def _is_editor(playlist: Playlist, person: str | None) -> bool:
    shared = playlist.collaborative and person in playlist.followers
    return person is not None and (playlist.owner == person or shared)


def check_read_scope(*, public: bool = True) -> None:
    """Check that the token may read playlists. Apps from before 2026 need a scope only for private ones.

    Raises:
        ApiError: 403, if not.
    """
    scope_free = public and sandbox().settings.mode != "dev2026"
    if not scope_free and not granted("playlist-read-private"):
        raise ApiError(403, "Insufficient client scope")


def changeable_playlist(item_id: str) -> Playlist:
    """Return a playlist that the caller may change.

    Raises:
        ApiError: 403, if it belongs to someone else or the scope is missing; 404, if it is unknown.
    """
    playlist = find_playlist(item_id)
    if not _is_editor(playlist, caller().account_id):
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
