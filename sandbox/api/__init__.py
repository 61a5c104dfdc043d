"""The part of the Web API (`/v1`) that the sandbox implements."""

from __future__ import annotations

from sandbox.api import browse, library, me, playback, player, playlists, removed
from sandbox.api.blueprint import api

__all__ = ["api", "browse", "library", "me", "playback", "player", "playlists", "removed"]
