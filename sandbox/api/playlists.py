"""Playlists: all are listed, but only one's own can be read."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Response, jsonify, request

from sandbox.api.blueprint import api, caller, granted, needs
from sandbox.api.bodies import json_object, text_member
from sandbox.api.errors import ApiError
from sandbox.api.fields import requested_fields
from sandbox.api.objects import simple_playlist
from sandbox.api.paging import page
from sandbox.api.playlist_access import (
    MODIFY,
    changeable_playlist,
    check_read_scope,
    check_scope,
    find_playlist,
    is_open,
)
from sandbox.api.playlist_items import entries
from sandbox.catalog import Playlist
from sandbox.context import sandbox
from sandbox.people import Person

MAX_COVER_BYTES = 256 * 1024


@api.get("/me/playlists")
def show_my_playlists() -> Response:
    """Return the user's playlists. Without the scope, apps from before 2026 get the public ones."""
    check_read_scope()
    return playlists_of(caller(), own=True)


def playlists_of(person: Person, *, own: bool) -> Response:
    """Return a page of a user's playlists. Its URL names the user, as on Spotify."""
    private = own and granted("playlist-read-private")
    shown = [
        simple_playlist(playlist)
        for playlist in sandbox().music.playlists_of(person.account_id)
        if (playlist.public or private)
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
    check_scope(public=public)
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


def _full(playlist: Playlist) -> dict[str, Any]:
    shown = simple_playlist(playlist) | {"followers": {"href": None, "total": len(playlist.followers)}}
    for name in ("items", "tracks"):
        if name not in shown:
            continue
        if is_open(playlist):
            path = f"playlists/{playlist.id}/{name}"
            shown[name] = page(entries(playlist), path, default=100, most=100)
        else:
            del shown[name]
    return shown


@api.get("/playlists/<item_id>")
def show_playlist(item_id: str) -> Response:
    """Return a playlist."""
    return jsonify(requested_fields(_full(find_playlist(item_id))))


@api.put("/playlists/<item_id>")
@needs(*MODIFY)
def change_playlist(item_id: str) -> tuple[str, int]:
    """Change name, description, visibility, or whether it is collaborative."""
    body = json_object()
    playlist = changeable_playlist(item_id)
    playlist.name = text_member(body, "name") or playlist.name
    playlist.description = text_member(body, "description") or playlist.description
    playlist.public = bool(body.get("public", playlist.public))
    playlist.collaborative = bool(body.get("collaborative", playlist.collaborative))
    playlist.snapshot += 1
    return "", 200


@api.get("/playlists/<item_id>/images")
def show_cover(item_id: str) -> Response:
    """Return the images of a playlist."""
    return jsonify(simple_playlist(find_playlist(item_id))["images"])


@api.put("/playlists/<item_id>/images")
@needs("ugc-image-upload")
def change_cover(item_id: str) -> tuple[str, int]:
    """Accept a cover and discard it: the sandbox draws its own."""
    playlist = changeable_playlist(item_id)
    if request.mimetype != "image/jpeg" or not request.get_data():
        raise ApiError(400, "Invalid image")
    if len(request.get_data()) > MAX_COVER_BYTES:
        raise ApiError(413, "Payload too large")
    playlist.has_cover = True
    playlist.snapshot += 1
    return "", 202


@api.put("/playlists/<item_id>/followers")
@needs(*MODIFY)
def follow_playlist(item_id: str) -> tuple[str, int]:
    """Follow a playlist."""
    sandbox().music.follow(caller().account_id, find_playlist(item_id))
    return "", 200


@api.delete("/playlists/<item_id>/followers")
@needs(*MODIFY)
def unfollow_playlist(item_id: str) -> tuple[str, int]:
    """Stop following a playlist. This is also how owners delete theirs."""
    sandbox().music.unfollow(caller().account_id, find_playlist(item_id))
    return "", 200


@api.get("/playlists/<item_id>/followers/contains")
def show_follows(item_id: str) -> Response:
    """Return, for each user, whether they follow the playlist. The default is the current user."""
    state, playlist = sandbox(), find_playlist(item_id)
    people = [state.people.named(person_id) for person_id in request.args.get("ids", caller().id).split(",")]
    return jsonify(
        [person is not None and state.music.follows(person.account_id, playlist) for person in people]
    )
