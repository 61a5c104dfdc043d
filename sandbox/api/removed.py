"""Endpoints that Spotify removed, and paths that never existed."""

from __future__ import annotations

import re
from typing import NoReturn

from flask import request

from sandbox.api.blueprint import api
from sandbox.api.errors import forbidden, not_found

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]

# Removed in November 2024 or February 2026. `*` stands for one path segment.
_REMOVED: dict[str, tuple[str, ...]] = {
    "tracks|albums|artists|episodes|shows|audiobooks|chapters|markets": ("GET",),
    "browse/new-releases|browse/featured-playlists": ("GET",),
    "browse/categories|browse/categories/*|browse/categories/*/playlists": ("GET",),
    "artists/*/top-tracks|artists/*/related-artists|users/*": ("GET",),
    "users/*/playlists": ("GET", "POST"),
    "me/tracks|me/albums|me/episodes|me/shows|me/audiobooks|me/following": ("PUT", "DELETE"),
    "me/tracks/contains|me/albums/contains|me/episodes/contains|me/shows/contains": ("GET",),
    "me/audiobooks/contains|me/following/contains|playlists/*/followers/contains": ("GET",),
    "playlists/*/followers": ("PUT", "DELETE"),
    "playlists/*/tracks": ("POST", "PUT", "DELETE"),
    "recommendations|recommendations/available-genre-seeds": ("GET",),
    "audio-features|audio-features/*|audio-analysis/*": ("GET",),
}
_PATTERNS = [(re.compile(paths.replace("*", "[^/]+")), methods) for paths, methods in _REMOVED.items()]


@api.route("/<path:path>", methods=METHODS)
def other(path: str) -> NoReturn:
    """Reject every path that has no view."""
    for pattern, methods in _PATTERNS:
        if request.method in methods and pattern.fullmatch(path):
            raise forbidden()
    raise not_found()
