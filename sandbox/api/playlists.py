"""Playlists: all are listed, but only one's own can be read."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Response, g, jsonify, request

from sandbox import items
from sandbox.api.blueprint import api, caller, granted, needs
from sandbox.api.bodies import json_object, text_member, track_ids
from sandbox.api.errors import ApiError, forbidden, not_found
from sandbox.api.objects import full_track, simple_playlist, snapshot_id, user
from sandbox.api.paging import page
from sandbox.catalog import Playlist
from sandbox.context import sandbox
from sandbox.people import Person

MODIFY = ("playlist-modify-public", "playlist-modify-private")
MAX_ITEMS = 100
ADDED_AT = "2026-05-02T09:00:00Z"


@api.get("/me/playlists")
@needs("playlist-read-private")
def show_my_playlists() -> Response:
    """Return the user's playlists. Page URLs name the user, as Spotify's do."""
    return _playlists_of(caller())


@api.get("/users/<person_id>/playlists")
def show_playlists(person_id: str) -> Response:
    """Return a user's playlists: of other users, and without the scope, the public ones."""
    person = sandbox().people.named(person_id)
    if person is None:
        raise not_found()
    return _playlists_of(person)


def _playlists_of(person: Person) -> Response:
    own = sandbox().people.id_of(g.token.grant.person) == person.id
    shown = [
        simple_playlist(playlist)
        for playlist in sandbox().music.playlists_of(person.account_id)
        if (playlist.public or (own and granted("playlist-read-private")))
        and (not playlist.collaborative or granted("playlist-read-collaborative"))
    ]
    return jsonify(page(shown, f"users/{quote(person.id, safe='')}/playlists"))


@api.post("/me/playlists")
@needs(*MODIFY)
def create_playlist() -> tuple[Response, int]:
    """Create a playlist."""
    body = json_object()
    public, collaborative = body.get("public", True), body.get("collaborative", False)
    if not isinstance(public, bool) or not isinstance(collaborative, bool):
        raise ApiError(400, "Error parsing JSON.")
    if not granted(MODIFY[0] if public else MODIFY[1]):
        raise ApiError(403, "Insufficient client scope")
    if not text_member(body, "name"):
        raise ApiError(400, "Missing required field: name")
    playlist = sandbox().music.add_playlist(
        caller().account_id,
        text_member(body, "name"),
        text_member(body, "description"),
        public=public,
        collaborative=collaborative,
    )
    return jsonify(_full(playlist)), 201


def _playlist(item_id: str) -> Playlist:
    playlist = sandbox().music.playlists.get(item_id)
    if playlist is None:
        raise not_found()
    return playlist


def _is_open(playlist: Playlist) -> bool:
    """Return whether the caller may see the items. Apps from before 2026 may see all."""
    person = caller().account_id
    shared = playlist.collaborative and person in playlist.followers
    return playlist.owner == person or shared or sandbox().settings.mode != "dev2026"


def _items(playlist: Playlist) -> list[dict[str, Any]]:
    return [_item(playlist, track) for track in playlist.track_ids]


def _item(playlist: Playlist, track_id: str | None) -> dict[str, Any]:
    mode = sandbox().settings.mode
    track = full_track(items.track(track_id)) | {"episode": False, "track": True} if track_id else None
    names = {"dev2026": ["item"], "transition": ["item", "track"], "legacy": ["track"]}[mode]
    added_by = user(playlist.owner)
    del added_by["display_name"]
    return {
        "added_at": ADDED_AT,
        "added_by": added_by,
        "is_local": False,
        "primary_color": None,
        **dict.fromkeys(names, track),
        "video_thumbnail": {"url": None},
    }


def _full(playlist: Playlist) -> dict[str, Any]:
    shown = simple_playlist(playlist) | {"followers": {"href": None, "total": len(playlist.followers)}}
    for name in ("items", "tracks"):
        if name not in shown:
            continue
        if _is_open(playlist):
            path = f"playlists/{playlist.id}/{name}"
            shown[name] = page(_items(playlist), path, default=100, most=100)
        else:
            del shown[name]
    return shown


@api.get("/playlists/<item_id>")
def show_playlist(item_id: str) -> Response:
    """Return a playlist."""
    return jsonify(_full(_playlist(item_id)))


@api.get("/playlists/<item_id>/items")
@needs("playlist-read-private")
def show_items(item_id: str) -> Response:
    """Return a page of a playlist's items."""
    playlist = _playlist(item_id)
    if not _is_open(playlist):
        raise forbidden()
    return jsonify(page(_items(playlist), f"playlists/{item_id}/items"))


@api.get("/playlists/<item_id>/tracks")
@needs("playlist-read-private")
def show_tracks(item_id: str) -> Response:
    """Return a page of items under the old path, which only apps from before 2026 may use."""
    return jsonify(page(_items(_playlist(item_id)), f"playlists/{item_id}/tracks", most=100))


def _changeable(item_id: str) -> Playlist:
    playlist = _playlist(item_id)
    person = caller().account_id
    if playlist.owner != person and not (playlist.collaborative and person in playlist.followers):
        raise forbidden()
    if not granted(MODIFY[0] if playlist.public else MODIFY[1]):
        raise ApiError(403, "Insufficient client scope")
    playlist.snapshot += 1
    return playlist


@api.post("/playlists/<item_id>/items")
@needs(*MODIFY)
def add_items(item_id: str) -> tuple[Response, int]:
    """Add tracks to a playlist."""
    body = json_object()
    added = track_ids(body.get("uris"), MAX_ITEMS)
    playlist = _changeable(item_id)
    position = body.get("position", len(playlist.track_ids))
    if type(position) is not int or not 0 <= position <= len(playlist.track_ids):
        raise ApiError(400, "Invalid position")
    playlist.track_ids[position:position] = added
    return jsonify(snapshot_id=snapshot_id(playlist)), 201


@api.put("/playlists/<item_id>/items")
@needs(*MODIFY)
def replace_items(item_id: str) -> Response:
    """Replace all items. Reordering is not implemented."""
    tracks = track_ids(json_object().get("uris"), MAX_ITEMS)
    playlist = _changeable(item_id)
    playlist.track_ids[:] = tracks
    return jsonify(snapshot_id=snapshot_id(playlist))


@api.delete("/playlists/<item_id>/items")
@needs(*MODIFY)
def remove_items(item_id: str) -> Response:
    """Remove tracks from a playlist."""
    entries = json_object().get("items")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ApiError(400, "Error parsing JSON.")
    gone = track_ids([entry.get("uri") for entry in entries], MAX_ITEMS)
    playlist = _changeable(item_id)
    playlist.track_ids[:] = [track for track in playlist.track_ids if track not in gone]
    return jsonify(snapshot_id=snapshot_id(playlist))


@api.put("/playlists/<item_id>")
@needs(*MODIFY)
def change_playlist(item_id: str) -> tuple[str, int]:
    """Change name, description, or visibility."""
    body = json_object()
    playlist = _changeable(item_id)
    playlist.name = text_member(body, "name") or playlist.name
    playlist.description = text_member(body, "description") or playlist.description
    playlist.public = bool(body.get("public", playlist.public))
    return "", 200


@api.get("/playlists/<item_id>/images")
def show_cover(item_id: str) -> Response:
    """Return the images of a playlist."""
    return jsonify(simple_playlist(_playlist(item_id))["images"])


@api.put("/playlists/<item_id>/images")
@needs("ugc-image-upload")
def change_cover(item_id: str) -> tuple[str, int]:
    """Accept a cover and discard it: the sandbox draws its own."""
    _changeable(item_id)
    if request.mimetype != "image/jpeg" or not request.get_data():
        raise ApiError(400, "Invalid image")
    return "", 202
