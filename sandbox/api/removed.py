"""Endpoints that Spotify removed, and paths that never existed."""

from __future__ import annotations

import re
from typing import NoReturn

from flask import g, request

from sandbox.api.blueprint import api
from sandbox.api.errors import forbidden, not_found
from sandbox.context import sandbox

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]

Endpoints = list[tuple[re.Pattern[str], tuple[str, ...]]]


def _endpoints(methods_by_paths: dict[str, tuple[str, ...]]) -> Endpoints:
    """Compile path patterns, in which `*` stands for one path segment."""
    return [(re.compile(paths.replace("*", "[^/]+")), methods) for paths, methods in methods_by_paths.items()]


_REMOVED_IN_2024 = _endpoints({
    "browse/featured-playlists|browse/categories/*/playlists|artists/*/related-artists": ("GET",),
    "recommendations|recommendations/available-genre-seeds": ("GET",),
    "audio-features|audio-features/*|audio-analysis/*": ("GET",),
})  # fmt: skip
_REMOVED_IN_2026 = _endpoints({
    "tracks|albums|artists|episodes|shows|audiobooks|chapters|markets": ("GET",),
    "browse/new-releases|browse/categories|browse/categories/*": ("GET",),
    "artists/*/top-tracks|users/*": ("GET",),
    "users/*/playlists": ("GET", "POST"),
    "me/tracks|me/albums|me/episodes|me/shows|me/audiobooks|me/following": ("PUT", "DELETE"),
    "me/tracks/contains|me/albums/contains|me/episodes/contains|me/shows/contains": ("GET",),
    "me/audiobooks/contains|me/following/contains|playlists/*/followers/contains": ("GET",),
    "playlists/*/followers": ("PUT", "DELETE"),
    "playlists/*/tracks": ("GET", "POST", "PUT", "DELETE"),
})  # fmt: skip


def _is_in(removed: Endpoints, path: str) -> bool:
    return any(request.method in methods and pattern.fullmatch(path) for pattern, methods in removed)


@api.before_request
def reject_removed() -> None:
    """Reject endpoints that the app may no longer use. Apps from before 2026 keep those removed in 2026.

    Raises:
        ApiError: 403.
    """
    path = request.path.removeprefix("/v1/").removesuffix("/")
    if _is_in(_REMOVED_IN_2024, path):
        raise forbidden()
    reduced = sandbox().settings.mode == "dev2026"
    if reduced and _is_in(_REMOVED_IN_2026, path) and not _is_own_page(path):
        raise forbidden()


def _is_own_page(path: str) -> bool:
    """Return whether this is where the page URLs of `me/playlists` point, which still works."""
    person_id = sandbox().people.id_of(g.token.grant.person) if "token" in g else None
    return request.method == "GET" and person_id is not None and path == f"users/{person_id}/playlists"


@api.route("/<path:path>", methods=METHODS)
def other(path: str) -> NoReturn:  # noqa: ARG001 - Flask passes it
    """Reject every path that has no view."""
    raise not_found()
