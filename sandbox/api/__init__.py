"""The part of the Web API (`/v1`) that the sandbox implements."""

from __future__ import annotations

from sandbox.api import catalog, library, me, playback, player, playlists, removed, search, users
from sandbox.api.blueprint import api

__all__ = ["api", "catalog", "library", "me", "playback", "player", "playlists", "removed", "search", "users"]
