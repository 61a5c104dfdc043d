"""spotipy's client, for a Backline server."""

from __future__ import annotations

from typing import Any

import spotipy  # type: ignore[import-untyped, import-not-found, unused-ignore]


def make_client(url: str, token: str, **options: Any) -> spotipy.Spotify:
    """Return a client that sends its calls to the server."""
    client = spotipy.Spotify(auth=token, **options)
    client.prefix = f"{url}/v1/"
    return client
