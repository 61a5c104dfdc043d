"""Items of playlists, under the current path `items` and the former path `tracks`."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify, request

from sandbox import items
from sandbox.api.blueprint import api, needs
from sandbox.api.bodies import json_body, json_object, member_uris
from sandbox.api.errors import ApiError, forbidden
from sandbox.api.fields import requested_fields
from sandbox.api.lookup import knows_episodes
from sandbox.api.objects import full_track, local_track, snapshot_id, user
from sandbox.api.paging import page
from sandbox.api.playlist_access import (
    MODIFY,
    changeable_playlist,
    check_read_scope,
    find_playlist,
    is_open,
)
from sandbox.api.spoken_objects import episode_as_track, full_episode
from sandbox.catalog import Playlist
from sandbox.context import sandbox

MAX_ITEMS = 100
ADDED_AT = "2026-05-02T09:00:00Z"
_PATH = "/playlists/<item_id>/<any(items, tracks):name>"


def entries(playlist: Playlist) -> list[dict[str, Any]]:
    """Return the entries of a playlist."""
    return [_entry(playlist, uri) for uri in playlist.uris]


def _entry(playlist: Playlist, uri: str | None) -> dict[str, Any]:
    mode = sandbox().settings.mode
    names = {"dev2026": ["item"], "transition": ["item", "track"], "legacy": ["track"]}[mode]
    added_by = user(playlist.owner)
    del added_by["display_name"]
    return {
        "added_at": ADDED_AT,
        "added_by": added_by,
        "is_local": uri is not None and uri.startswith("spotify:local:"),
        "primary_color": None,
        **dict.fromkeys(names, _item(uri) if uri else None),
        "video_thumbnail": {"url": None},
    }


def _item(uri: str) -> dict[str, Any]:
    _, kind, item_id = uri.split(":", 2)
    if kind == "local":
        return local_track(uri)
    if kind == "track":
        return full_track(items.track(item_id)) | {"episode": False, "track": True}
    if knows_episodes():
        return full_episode(items.episode(item_id)) | {"episode": True, "track": False}
    return episode_as_track(items.episode(item_id)) | {"episode": False, "track": True}


@api.get(_PATH)
def show_items(item_id: str, name: str) -> Response:
    """Return a page of a playlist's items."""
    playlist = find_playlist(item_id)
    check_read_scope(public=playlist.public)
    if not is_open(playlist):
        raise forbidden()
    most = 50 if name == "items" else 100
    return jsonify(requested_fields(page(entries(playlist), f"playlists/{item_id}/{name}", most=most)))


def _changed(playlist: Playlist) -> Response:
    playlist.snapshot += 1
    return jsonify(snapshot_id=snapshot_id(playlist))


def _whole(value: object, least: int, most: int, name: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ApiError(400, f"Invalid {name}")
    return value


@api.post(_PATH)
@needs(*MODIFY)
def add_items(item_id: str, name: str) -> tuple[Response, int]:  # noqa: ARG001 - Flask passes it
    """Add items. Their URIs, and the position, may be in the body or in the query."""
    body = json_body()
    members = {"uris": body} if isinstance(body, list) else body
    added = member_uris(members, MAX_ITEMS)
    playlist = changeable_playlist(item_id)
    end = len(playlist.uris)
    position = members.get("position")
    if position is None:
        text = request.args.get("position", str(end))
        position = int(text) if text.isascii() and text.isdigit() else None
    at = _whole(position, 0, end, "position")
    playlist.uris[at:at] = added
    return _changed(playlist), 201


@api.put(_PATH)
@needs(*MODIFY)
def replace_items(item_id: str, name: str) -> Response:  # noqa: ARG001 - Flask passes it
    """Replace all items, or move some. An empty list of URIs removes all."""
    body = json_object()
    if "range_start" in body:
        playlist = changeable_playlist(item_id)
        _move(playlist.uris, body)
    else:
        uris = member_uris(body, MAX_ITEMS, least=0)
        playlist = changeable_playlist(item_id)
        playlist.uris[:] = uris
    return _changed(playlist)


def _move(uris: list[str | None], body: dict[str, Any]) -> None:
    count = len(uris)
    start = _whole(body.get("range_start"), 0, count - 1, "range_start")
    length = _whole(body.get("range_length", 1), 1, count - start, "range_length")
    before = _whole(body.get("insert_before"), 0, count, "insert_before")
    moved = uris[start : start + length]
    del uris[start : start + length]
    at = before if before <= start else max(start, before - length)
    uris[at:at] = moved


@api.delete(_PATH)
@needs(*MODIFY)
def remove_items(item_id: str, name: str) -> Response:
    """Remove items by URI, by URI and positions, or (only as `tracks`) by position."""
    body = json_object()
    playlist = changeable_playlist(item_id)
    if name == "tracks" and "positions" in body:
        gone = {_whole(at, 0, len(playlist.uris) - 1, "positions") for at in _list(body["positions"])}
    else:
        gone = {at for entry in _list(body.get(name)) for at in _positions(playlist, entry)}
    playlist.uris[:] = [uri for at, uri in enumerate(playlist.uris) if at not in gone]
    return _changed(playlist)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
        raise ApiError(400, "Error parsing JSON.")
    return value


def _positions(playlist: Playlist, entry: object) -> list[int]:
    """Return where an item is that is to be removed: everywhere, or only where the entry says."""
    if not isinstance(entry, dict) or not isinstance(entry.get("uri"), str):
        raise ApiError(400, "Error parsing JSON.")
    places = [at for at, uri in enumerate(playlist.uris) if uri == entry["uri"]]
    if "positions" not in entry:
        return places
    positions = _list(entry["positions"])
    if not set(positions) <= set(places):
        raise ApiError(400, "Could not remove tracks, please check parameters.")
    return positions
