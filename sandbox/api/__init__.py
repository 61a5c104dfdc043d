"""The part of the Web API (`/v1`) that the sandbox implements."""

from __future__ import annotations

from sandbox.api import (
    browse,
    catalog,
    following,
    library,
    me,
    playback,
    player,
    playlists,
    removed,
    search,
    top,
    users,
)
from sandbox.api.blueprint import api

__all__ = [
    "api",
    "browse",
    "catalog",
    "following",
    "library",
    "me",
    "playback",
    "player",
    "playlists",
    "removed",
    "search",
    "top",
    "users",
]
