"""Saved items and top items."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Response, jsonify, request

from sandbox import items
from sandbox.api.blueprint import api, caller, needs
from sandbox.api.errors import ApiError, not_found
from sandbox.api.lookup import exists
from sandbox.api.objects import full_artist, full_track
from sandbox.api.paging import page
from sandbox.catalog import ARTISTS, TRACKS
from sandbox.clock import as_whole_seconds
from sandbox.context import sandbox

MAX_URIS = 40
RANGES = ("short_term", "medium_term", "long_term")
KINDS = ("track", "album", "episode", "show", "audiobook", "user", "playlist", "artist")


def _saved() -> dict[str, int]:
    return sandbox().music.saved_by(caller().account_id)


@api.get("/me/tracks")
@needs("user-library-read")
def show_saved_tracks() -> Response:
    """Return saved tracks, newest first. The member is named `track` in all modes."""
    saved = sorted(_saved().items(), key=lambda entry: -entry[1])
    tracks = [
        {
            "added_at": as_whole_seconds(datetime.fromtimestamp(at / 1000, UTC)),
            "track": full_track(items.track(item_id)),
        }
        for uri, at in saved
        if exists("track", item_id := uri.removeprefix("spotify:track:"))
    ]
    return jsonify(page(tracks, "me/tracks"))


@api.get("/me/top/<kind>")
@needs("user-top-read")
def show_top(kind: str) -> Response:
    """Return the catalog, rotated by time range so that the ranges differ."""
    time_range = request.args.get("time_range", "medium_term")
    if kind not in ("artists", "tracks"):
        raise not_found()
    if time_range not in RANGES:
        raise ApiError(400, "Invalid time range")
    turn = RANGES.index(time_range)
    artists, tracks = list(ARTISTS.values()), list(TRACKS.values())
    shown = (
        [full_artist(artist) for artist in artists[turn:] + artists[:turn]]
        if kind == "artists"
        else [full_track(track) for track in tracks[turn:] + tracks[:turn]]
    )
    return jsonify(page(shown, f"me/top/{kind}", time_range=time_range))


def _uris() -> list[str]:
    """Return the URIs in the query, where the library endpoints expect them."""
    uris = request.args.get("uris", "").split(",")
    if len(uris) > MAX_URIS:
        raise ApiError(400, "Too many uris")
    for uri in uris:
        parts = uri.split(":")
        if len(parts) != 3 or parts[0] != "spotify" or parts[1] not in KINDS or not parts[2]:
            raise ApiError(400, "Invalid uri")
    return uris


@api.put("/me/library")
@needs("user-library-modify")
def save() -> tuple[str, int]:
    """Save items."""
    now = sandbox().clock.now_ms()
    _saved().update(dict.fromkeys(_uris(), now))
    return "", 200


@api.delete("/me/library")
@needs("user-library-modify")
def unsave() -> tuple[str, int]:
    """Remove saved items."""
    for uri in _uris():
        _saved().pop(uri, None)
    return "", 200


@api.get("/me/library/contains")
@needs("user-library-read", "user-follow-read", "playlist-read-private")
def contains() -> Response:
    """Return, for each URI, whether it is saved."""
    return jsonify([uri in _saved() for uri in _uris()])
