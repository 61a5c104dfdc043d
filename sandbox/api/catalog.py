"""The catalog: albums, artists, tracks, shows, episodes, audiobooks, and chapters."""

from __future__ import annotations

from flask import Response, jsonify, request

from sandbox import items
from sandbox.api.blueprint import api
from sandbox.api.errors import ApiError
from sandbox.api.lookup import check_id, exists, full_object, listed_object
from sandbox.api.members import former
from sandbox.api.objects import full_track, simple_album, simple_track
from sandbox.api.paging import page
from sandbox.api.spoken_objects import chapters_of, episodes_of
from sandbox.context import sandbox

_KINDS = "<any(albums, artists, audiobooks, chapters, episodes, shows, tracks):kinds>"
MAX_IDS, MAX_ALBUM_IDS = 50, 20
MAX_TOP_TRACKS = 10


@api.get(f"/{_KINDS}/<item_id>")
def show_item(kinds: str, item_id: str) -> Response:
    """Return an item."""
    kind = kinds.removesuffix("s")
    check_id(kind, item_id)
    return jsonify(full_object(kind, item_id))


@api.get(f"/{_KINDS}")
def show_several(kinds: str) -> Response:
    """Return several items, with None for unknown ones."""
    kind = kinds.removesuffix("s")
    found = [
        listed_object(kind, item_id) if exists(kind, item_id) else None
        for item_id in ids_in_query(MAX_ALBUM_IDS if kind == "album" else MAX_IDS)
    ]
    return jsonify({kinds: found})


def ids_in_query(most: int) -> list[str]:
    """Return the ids in the query.

    Raises:
        ApiError: 400, if there are none or too many, or one is malformed.
    """
    ids = request.args.get("ids", "").split(",")
    if len(ids) > most:
        raise ApiError(400, "Too many ids requested")
    if not all(items.is_well_formed(item_id) for item_id in ids):
        raise ApiError(400, "Invalid base62 id")
    return ids


@api.get("/albums/<item_id>/tracks")
def show_album_tracks(item_id: str) -> Response:
    """Return a page of an album's tracks."""
    check_id("album", item_id)
    tracks = [simple_track(items.track(track_id)) for track_id in items.album(item_id).track_ids]
    return jsonify(page(tracks, f"albums/{item_id}/tracks"))


@api.get("/artists/<item_id>/albums")
def show_artist_albums(item_id: str) -> Response:
    """Return a page of an artist's albums. `include_groups` selects kinds of albums."""
    check_id("artist", item_id)
    groups = request.args.get("include_groups", "album,single,appears_on,compilation").split(",")
    albums = [
        {**simple_album(album), **former(album_group=album.kind)}
        for album in items.albums_of(item_id)
        if album.kind in groups
    ]
    default, most = (5, 10) if sandbox().settings.mode == "dev2026" else (20, 50)
    return jsonify(page(albums, f"artists/{item_id}/albums", default=default, most=most))


@api.get("/artists/<item_id>/top-tracks")
def show_top_tracks(item_id: str) -> Response:
    """Return an artist's most popular tracks."""
    check_id("artist", item_id)
    ids = [track_id for album in items.albums_of(item_id) for track_id in album.track_ids]
    return jsonify(tracks=[full_track(items.track(track_id)) for track_id in ids[:MAX_TOP_TRACKS]])


@api.get("/shows/<item_id>/episodes")
def show_episodes(item_id: str) -> Response:
    """Return a page of a show's episodes."""
    check_id("show", item_id)
    return jsonify(page(episodes_of(items.show(item_id)), f"shows/{item_id}/episodes"))


@api.get("/audiobooks/<item_id>/chapters")
def show_chapters(item_id: str) -> Response:
    """Return a page of an audiobook's chapters."""
    check_id("audiobook", item_id)
    return jsonify(page(chapters_of(items.audiobook(item_id)), f"audiobooks/{item_id}/chapters"))
