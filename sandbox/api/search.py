"""Search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Response, jsonify, request

from sandbox.api.blueprint import api
from sandbox.api.errors import ApiError
from sandbox.api.objects import full_artist, full_track, simple_album, simple_playlist
from sandbox.api.paging import number, page
from sandbox.api.spoken_objects import simple_audiobook, simple_episode, simple_show
from sandbox.catalog import ALBUMS, ARTISTS, TRACKS
from sandbox.context import sandbox
from sandbox.spoken import AUDIOBOOKS, EPISODES, SHOWS

MAX_RESULTS = 1000

Searched = dict[str, tuple[Iterable[Any], Callable[[Any], dict[str, Any]]]]


def _searched() -> Searched:
    public = [playlist for playlist in sandbox().music.playlists.values() if playlist.public]
    return {
        "album": (ALBUMS.values(), simple_album),
        "artist": (ARTISTS.values(), full_artist),
        "audiobook": (AUDIOBOOKS.values(), simple_audiobook),
        "episode": (EPISODES.values(), simple_episode),
        "playlist": (public, simple_playlist),
        "show": (SHOWS.values(), simple_show),
        "track": (TRACKS.values(), full_track),
    }


@api.get("/search")
def search() -> Response:
    """Find names that contain the query. Page URLs say `query=`, as Spotify's do, which works like `q=`."""
    q = request.args.get("q") or request.args.get("query", "")
    kinds = request.args.get("type", "").split(",")
    searched = _searched()
    if not q:
        raise ApiError(400, "No search query")
    if any(kind not in searched for kind in kinds):
        raise ApiError(400, "Bad search type field")
    reduced = sandbox().settings.mode == "dev2026"
    default, most = (5, 10) if reduced else (20, 50)
    if number("offset", 0, 0, MAX_RESULTS) + number("limit", default, 1, most) > MAX_RESULTS:
        raise ApiError(400, "Invalid offset")
    return jsonify(
        {
            f"{kind}s": page(
                _found(searched, kind, q), "search", default=default, most=most, query=q, type=kind
            )
            for kind in kinds
        }
    )


def _found(searched: Searched, kind: str, q: str) -> list[Any]:
    """Return the matches of one kind. The first playlist is None, as on Spotify since 2024-11.

    Where every id has an item, every query has results, too.
    """
    candidates, shown = searched[kind]
    matches = [one for one in candidates if q.casefold() in one.name.casefold()]
    if not matches and sandbox().settings.invents:
        matches = list(candidates)
    found = [shown(one) for one in matches]
    return [None, *found] if kind == "playlist" else found
