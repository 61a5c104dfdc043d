"""Objects in responses: tracks, albums, artists, playlists, devices, contexts."""

from __future__ import annotations

from typing import Any

from sandbox.api.links import API, OPEN, image_url, links
from sandbox.catalog import ALBUMS, ARTISTS, TRACKS, Album, Artist, Playlist, Track
from sandbox.context import sandbox
from sandbox.player_state import Device

_PRECISION = {4: "year", 7: "month", 10: "day"}


def _former(**members: Any) -> dict[str, Any]:
    """Return the members, unless the app is a new development-mode app."""
    return {} if sandbox().settings.mode == "dev2026" else members


def _covers(kind: str, item_id: str, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    url = image_url(kind, item_id)
    return [{"url": f"{url}?size={size}", "height": size, "width": size} for size in sizes]


def simple_artist(artist: Artist) -> dict[str, Any]:
    """Return a simplified artist."""
    return {"name": artist.name, **links("artist", artist.id)}


def full_artist(artist: Artist) -> dict[str, Any]:
    """Return a full artist."""
    return {
        **simple_artist(artist),
        "genres": [],
        "images": _covers("artist", artist.id, (640, 320, 160)),
        **_former(followers={"href": None, "total": artist.followers}, popularity=40),
    }


def simple_album(album: Album) -> dict[str, Any]:
    """Return a simplified album."""
    return {
        "album_type": album.kind,
        "artists": [simple_artist(ARTISTS[album.artist_id])],
        "images": _covers("album", album.id, (640, 300, 64)),
        "is_playable": True,
        "name": album.name,
        "release_date": album.released,
        "release_date_precision": _PRECISION[len(album.released)],
        "total_tracks": len(album.track_ids),
        **links("album", album.id),
        **_former(available_markets=["AT", "DE", "JP", "NO"]),
    }


def full_album(album: Album) -> dict[str, Any]:
    """Return a full album with its tracks."""
    tracks = [simple_track(TRACKS[item_id]) for item_id in album.track_ids]
    href = f"{API}/albums/{album.id}/tracks?offset=0&limit=50"
    page = {"href": href, "limit": 50, "next": None, "offset": 0, "previous": None, "total": len(tracks)}
    return {
        **simple_album(album),
        "copyrights": [{"text": "2026 Nobody", "type": "C"}],
        "external_ids": {"upc": f"{int(album.id.encode().hex(), 16) % 10**12:012d}"},
        "genres": [],
        "tracks": {**page, "items": tracks},
        **_former(label="Nobody", popularity=40),
    }


def simple_track(track: Track) -> dict[str, Any]:
    """Return a simplified track."""
    return {
        "artists": [simple_artist(ARTISTS[track.artist_id])],
        "disc_number": 1,
        "duration_ms": track.duration_ms,
        "explicit": track.explicit,
        "is_local": False,
        "is_playable": True,
        "name": track.name,
        "preview_url": None,
        "track_number": track.number,
        **links("track", track.id),
        **_former(available_markets=["AT", "DE", "JP", "NO"]),
    }


def full_track(track: Track) -> dict[str, Any]:
    """Return a full track with its album."""
    return {
        "album": simple_album(ALBUMS[track.album_id]),
        **simple_track(track),
        "external_ids": {"isrc": track.isrc},
        **_former(popularity=40),
    }


def user(account_id: str | None) -> dict[str, Any]:
    """Return the owner of a playlist, named by `id` and never by `account_id`."""
    person = sandbox().people.of_account(account_id)
    item_id = person.id if person else "spotify"
    return {"display_name": person.display_name if person else "Spotify", **links("user", item_id)}


def simple_playlist(playlist: Playlist) -> dict[str, Any]:
    """Return a simplified playlist."""
    mode = sandbox().settings.mode
    total = len(playlist.track_ids)
    counts = {
        name: {"href": f"{API}/playlists/{playlist.id}/{name}", "total": total}
        for name, left_out_in in (("items", "legacy"), ("tracks", "dev2026"))
        if mode != left_out_in
    }
    return {
        "collaborative": playlist.collaborative,
        "description": playlist.description,
        "images": _covers("playlist", playlist.id, (640,)) if total else [],
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
        "href": f"{API}/{kind}s/{item_id}",
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
