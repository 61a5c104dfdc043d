"""The catalog: tracks, albums, artists, and search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, jsonify, request

from sandbox.api.blueprint import api
from sandbox.api.errors import ApiError, not_found
from sandbox.api.objects import (
    full_album,
    full_artist,
    full_track,
    simple_album,
    simple_playlist,
    simple_track,
)
from sandbox.api.paging import number, page
from sandbox.catalog import ALBUMS, ARTISTS, TRACKS
from sandbox.context import sandbox

SEARCH_TYPES = ("album", "artist", "playlist", "track", "show", "episode", "audiobook")


@api.get("/tracks/<item_id>")
def show_track(item_id: str) -> Response:
    """Return a track."""
    if item_id not in TRACKS:
        raise not_found()
    return jsonify(full_track(TRACKS[item_id]))


@api.get("/albums/<item_id>")
def show_album(item_id: str) -> Response:
    """Return an album."""
    if item_id not in ALBUMS:
        raise not_found()
    return jsonify(full_album(ALBUMS[item_id]))


@api.get("/albums/<item_id>/tracks")
def show_album_tracks(item_id: str) -> Response:
    """Return a page of an album's tracks."""
    if item_id not in ALBUMS:
        raise not_found()
    tracks = [simple_track(TRACKS[track]) for track in ALBUMS[item_id].track_ids]
    return jsonify(page(tracks, f"albums/{item_id}/tracks"))


@api.get("/artists/<item_id>")
def show_artist(item_id: str) -> Response:
    """Return an artist."""
    if item_id not in ARTISTS:
        raise not_found()
    return jsonify(full_artist(ARTISTS[item_id]))


@api.get("/artists/<item_id>/albums")
def show_artist_albums(item_id: str) -> Response:
    """Return a page of an artist's albums."""
    if item_id not in ARTISTS:
        raise not_found()
    albums = [simple_album(album) for album in ALBUMS.values() if album.artist_id == item_id]
    return jsonify(page(albums, f"artists/{item_id}/albums", default=5, most=10))


@api.get("/search")
def search() -> Response:
    """Find names that contain the query. Page URLs say `query=`, as Spotify's do, which works like `q=`."""
    q = request.args.get("q") or request.args.get("query", "")
    kinds = request.args.get("type", "").split(",")
    if not q:
        raise ApiError(400, "No search query")
    if any(kind not in SEARCH_TYPES for kind in kinds):
        raise ApiError(400, "Bad search type field")
    reduced = sandbox().settings.mode == "dev2026"
    default, most = (5, 10) if reduced else (20, 50)
    number("offset", 0, 0, 1000)
    return jsonify(
        {
            f"{kind}s": page(_found(kind, q), "search", default=default, most=most, query=q, type=kind)
            for kind in kinds
        }
    )


def _found(kind: str, q: str) -> list[Any]:
    """Return the matches of one kind. The first playlist is None, as on Spotify since 2024-11."""
    public = [p for p in sandbox().music.playlists.values() if p.public]
    searched: dict[str, tuple[list[Any], Callable[[Any], dict[str, Any]]]] = {
        "track": (list(TRACKS.values()), full_track),
        "album": (list(ALBUMS.values()), simple_album),
        "artist": (list(ARTISTS.values()), full_artist),
        "playlist": (public, simple_playlist),
    }
    candidates, shown = searched.get(kind, ([], full_track))
    matches = [shown(one) for one in candidates if q.casefold() in one.name.casefold()]
    return [None, *matches] if kind == "playlist" else matches
