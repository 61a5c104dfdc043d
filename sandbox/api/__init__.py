"""The Web API under /v1, as far as the sandbox has it."""

from __future__ import annotations

from sandbox.api import browse, library, me, playback, player, playlists, removed
from sandbox.api.blueprint import api

__all__ = ["api", "browse", "library", "me", "playback", "player", "playlists", "removed"]
