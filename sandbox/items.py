"""Items by id: those of the catalog, and plausible ones for all other ids.

The ids of invented items that belong together differ only in their last character: the tracks of an album are
`…1` to `…c`, and each names the album `…0`. So nothing has to be remembered.
"""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.catalog import ALBUMS, ARTISTS, ID_LENGTH, TRACKS, Album, Artist, Track
from sandbox.spoken import AUDIOBOOKS, CHAPTERS, EPISODES, SHOWS, Part, Series

_PARTS = "123456789abc"

LISTED: dict[str, Mapping[str, object]] = {
    "album": ALBUMS,
    "artist": ARTISTS,
    "audiobook": AUDIOBOOKS,
    "chapter": CHAPTERS,
    "episode": EPISODES,
    "show": SHOWS,
    "track": TRACKS,
}


def is_well_formed(item_id: str) -> bool:
    """Return whether the id consists of 22 base-62 characters."""
    return len(item_id) == ID_LENGTH and item_id.isascii() and item_id.isalnum()


def track(item_id: str) -> Track:
    """Return a track."""
    return TRACKS.get(item_id) or Track(
        id=item_id,
        name=_name("Track", item_id),
        album_id=_whole(item_id),
        artist_id=_whole(item_id),
        number=_number(item_id),
        duration_ms=180_000 + 1000 * _number(item_id),
        explicit=False,
        isrc=f"XXA12{int.from_bytes(item_id.encode()) % 10**7:07d}",
    )


def album(item_id: str) -> Album:
    """Return an album."""
    return ALBUMS.get(item_id) or Album(
        item_id, _name("Album", item_id), _whole(item_id), "album", "2020-02-20", _parts(item_id)
    )


def artist(item_id: str) -> Artist:
    """Return an artist."""
    return ARTISTS.get(item_id) or Artist(item_id, _name("Artist", item_id), 1000)


def duration_ms(uri: str) -> int:
    """Return the duration of a track or episode."""
    _, kind, item_id = uri.split(":")
    return (episode(item_id) if kind == "episode" else track(item_id)).duration_ms


def albums_of(artist_id: str) -> list[Album]:
    """Return the albums of an artist."""
    listed = [found for found in ALBUMS.values() if found.artist_id == artist_id]
    return listed or [album(_whole(artist_id))]


def show(item_id: str) -> Series:
    """Return a show."""
    return SHOWS.get(item_id) or _series("show", item_id)


def audiobook(item_id: str) -> Series:
    """Return an audiobook."""
    return AUDIOBOOKS.get(item_id) or _series("audiobook", item_id)


def episode(item_id: str) -> Part:
    """Return an episode."""
    return EPISODES.get(item_id) or _part("Episode", item_id)


def chapter(item_id: str) -> Part:
    """Return a chapter."""
    return CHAPTERS.get(item_id) or _part("Chapter", item_id)


def _series(kind: str, item_id: str) -> Series:
    return Series(item_id, _name(kind.capitalize(), item_id), kind, "Somebody", _parts(item_id))


def _part(kind: str, item_id: str) -> Part:
    number = _number(item_id)
    return Part(item_id, _name(kind, item_id), _whole(item_id), number, 1_800_000, "2020-02-20")


def _name(kind: str, item_id: str) -> str:
    return f"{kind} {item_id[:4]}"


def _number(item_id: str) -> int:
    return max(1, _PARTS.find(item_id[-1]) + 1)


def _whole(item_id: str) -> str:
    return f"{item_id[:-1]}0"


def _parts(item_id: str) -> tuple[str, ...]:
    return tuple(item_id[:-1] + number for number in _PARTS)
