"""Objects in responses: tracks, albums, artists, playlists, devices, contexts."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_plus

from sandbox import items
from sandbox.api.members import OPEN, api_url, availability, covers, former, links
from sandbox.api.paging import first_page
from sandbox.catalog import Album, Artist, Playlist, Track
from sandbox.context import sandbox
from sandbox.player_state import Device

_PRECISION = {4: "year", 7: "month", 10: "day"}


def simple_artist(artist: Artist) -> dict[str, Any]:
    """Return a simplified artist."""
    return {"name": artist.name, **links("artist", artist.id)}


def full_artist(artist: Artist) -> dict[str, Any]:
    """Return a full artist."""
    return {
        **simple_artist(artist),
        "genres": [],
        "images": covers("artist", artist.id, (640, 320, 160)),
        **former(followers={"href": None, "total": artist.followers}, popularity=40),
    }


def simple_album(album: Album) -> dict[str, Any]:
    """Return a simplified album."""
    return {
        "album_type": album.kind,
        "artists": [simple_artist(items.artist(album.artist_id))],
        "images": covers("album", album.id, (640, 300, 64)),
        "name": album.name,
        "release_date": album.released,
        "release_date_precision": _PRECISION[len(album.released)],
        "total_tracks": len(album.track_ids),
        **links("album", album.id),
        **availability(),
    }


def full_album(album: Album) -> dict[str, Any]:
    """Return a full album with its tracks."""
    tracks = [simple_track(items.track(item_id)) for item_id in album.track_ids]
    return {
        **simple_album(album),
        "copyrights": [{"text": "2026 Nobody", "type": "C"}],
        "external_ids": {"upc": f"{int(album.id.encode().hex(), 16) % 10**12:012d}"},
        "genres": [],
        "tracks": first_page(tracks, f"albums/{album.id}/tracks"),
        **former(label="Nobody", popularity=40),
    }


def simple_track(track: Track) -> dict[str, Any]:
    """Return a simplified track."""
    return {
        "artists": [simple_artist(items.artist(track.artist_id))],
        "disc_number": 1,
        "duration_ms": track.duration_ms,
        "explicit": track.explicit,
        "is_local": False,
        "name": track.name,
        "preview_url": None,
        "track_number": track.number,
        **links("track", track.id),
        **availability(),
    }


def full_track(track: Track) -> dict[str, Any]:
    """Return a full track with its album."""
    return {
        "album": simple_album(items.album(track.album_id)),
        **simple_track(track),
        "external_ids": {"isrc": track.isrc},
        **former(popularity=40),
    }


def local_track(uri: str) -> dict[str, Any]:
    """Return a file on a user's computer, named by a URI with artist, album, title, and seconds."""
    artist, album, title, seconds = (unquote_plus(part) for part in uri.split(":")[2:])
    nothing: dict[str, Any] = {"external_urls": {}, "href": None, "id": None}
    shown_album = {
        **nothing,
        "album_type": None,
        "artists": [],
        "images": [],
        "name": album,
        "release_date": None,
        "release_date_precision": None,
        "type": "album",
        "uri": None,
    }
    return {
        **nothing,
        "album": shown_album | former(available_markets=[]),
        "artists": [{**nothing, "name": artist, "type": "artist", "uri": None}],
        "disc_number": 0,
        "duration_ms": int(seconds) * 1000,
        "explicit": False,
        "external_ids": {},
        "is_local": True,
        "name": title,
        "preview_url": None,
        "track_number": 0,
        "type": "track",
        "uri": uri,
        **former(available_markets=[], popularity=0),
    }


def user(account_id: str | None) -> dict[str, Any]:
    """Return the owner of a playlist, named by `id` and never by `account_id`."""
    person = sandbox().people.of_account(account_id)
    item_id = person.id if person else "spotify"
    return {"display_name": person.display_name if person else "Spotify", **links("user", item_id)}


def simple_playlist(playlist: Playlist) -> dict[str, Any]:
    """Return a simplified playlist."""
    mode = sandbox().settings.mode
    total = len(playlist.uris)
    counts = {
        name: {"href": api_url(f"playlists/{playlist.id}/{name}"), "total": total}
        for name, left_out_in in (("items", "legacy"), ("tracks", "dev2026"))
        if mode != left_out_in
    }
    return {
        "collaborative": playlist.collaborative,
        "description": playlist.description,
        "images": covers("playlist", playlist.id, (640,)) if total or playlist.has_cover else [],
        "name": playlist.name,
        "owner": user(playlist.owner),
        "primary_color": None,
        "public": playlist.public,
        "snapshot_id": snapshot_id(playlist),
        **counts,
        **links("playlist", playlist.id),
    }


def snapshot_id(playlist: Playlist) -> str:
    """Return the id of a playlist's current version."""
    return f"AAAA{playlist.snapshot:04d}{playlist.id}=="


def context(uri: str | None) -> dict[str, Any] | None:
    """Return what a player is playing from; None if nothing."""
    if uri is None:
        return None
    kind, _, item_id = uri.removeprefix("spotify:").partition(":")
    return {
        "type": kind,
        "href": api_url(f"{kind}s/{item_id}"),
        "external_urls": {"spotify": f"{OPEN}/{kind}/{item_id}"},
        "uri": uri,
    }


def device(found: Device, active: str | None) -> dict[str, Any]:
    """Return a device."""
    return {
        "id": found.id,
        "is_active": found.id == active,
        "is_private_session": False,
        "is_restricted": False,
        "name": found.name,
        "supports_volume": found.supports_volume,
        "type": found.kind,
        "volume_percent": found.volume,
    }
