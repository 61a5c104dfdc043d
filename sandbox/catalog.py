"""The sandbox's music: invented artists, albums, tracks, and playlists.

Ids are 22 base-62 characters, as on Spotify. Everything here is constant; what people do with it (playing,
saving, new playlists) is in `music`.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass, field

# Where everything can be played.
MARKETS = [
    "AR", "AT", "AU", "BE", "BR", "CA", "CH", "CZ", "DE", "DK", "ES", "FI", "FR", "GB", "GR", "IE", "IN",
    "IT", "JP", "KR", "MX", "NL", "NO", "NZ", "PL", "PT", "SE", "US", "ZA",
]  # fmt: skip

_DIGITS = string.digits + string.ascii_letters
ID_LENGTH = 22


def base62_id(text: str) -> str:
    """Return an id derived from the text. The same text always has the same id."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:20])
    digits = []
    for _ in range(ID_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(digits)


@dataclass(frozen=True)
class Artist:
    """An artist."""

    id: str
    name: str
    followers: int


@dataclass(frozen=True)
class Track:
    """A track."""

    id: str
    name: str
    album_id: str
    artist_id: str
    number: int
    duration_ms: int
    explicit: bool
    isrc: str


@dataclass(frozen=True)
class Album:
    """An album or single."""

    id: str
    name: str
    artist_id: str
    kind: str
    released: str
    track_ids: tuple[str, ...]


@dataclass
class Playlist:
    """A playlist. `owner` is an account id; URIs are None where a track was removed."""

    id: str
    name: str
    description: str
    owner: str | None
    public: bool
    collaborative: bool
    uris: list[str | None]
    snapshot: int = 1
    followers: set[str] = field(default_factory=set)
    has_cover: bool = False
    """Whether its owner uploaded a cover. Others have one if they are not empty."""
    is_deleted: bool = False
    """Whether the owner no longer lists it. As on Spotify, it can still be read."""


CATEGORIES = {"dinner": "Dinner", "focus": "Focus", "party": "Party", "travel": "Travel"}

# Artist, album, kind, release date, then title and seconds of each track.
_RECORDS: list[tuple[str, str, str, str, list[tuple[str, int]]]] = [
    ("Quiet Ferry", "Paper Lanterns", "single", "2026-03-14", [
        ("Harbour Lights", 203), ("Last Boat Home", 187),
    ]),
    ("Quiet Ferry", "Tidewriting", "album", "2024-09-06", [
        ("Salt Alphabet", 221), ("Gull Street", 176), ("Every Rope Has a Name", 248), ("Low Water", 199),
        ("A Lamp for the Keeper", 264),
    ]),
    ("Nora Velt", "Glass Orchard", "album", "2025-05-23", [
        ("Windfall", 212), ("Apples, Mostly", 158), ("Greenhouse Weather", 234), ("Who Waters the Moon", 287),
    ]),
    ("The Tin Parade", "Loud Small Machines", "album", "2022-11-11", [
        ("Wind-Up Heart", 143), ("Clockmaker's Holiday", 195), ("Brass & Bother", 166), ("Spare Parts", 181),
    ]),
    ("Ødemark", "Nattåpent", "single", "2026-08-28", [("Nattåpent", 312), ("Siste trikk", 275)]),
    ("Kasumi Trio", "雨の電車", "album", "2021", [("雨の電車", 254), ("Platform Nine, Autumn", 329)]),
]  # fmt: skip

ARTISTS: dict[str, Artist] = {}
ALBUMS: dict[str, Album] = {}
TRACKS: dict[str, Track] = {}


def _fill() -> None:
    for artist_name, album_name, kind, released, titles in _RECORDS:
        artist = Artist(base62_id(f"artist {artist_name}"), artist_name, 100 * len(artist_name) ** 2)
        album_id = base62_id(f"album {album_name}")
        tracks = [
            Track(
                id=base62_id(f"track {album_name} {title}"),
                name=title,
                album_id=album_id,
                artist_id=artist.id,
                number=number,
                duration_ms=seconds * 1000 + 100 * number,
                explicit=title == "Brass & Bother",
                isrc=f"XXA11{len(TRACKS) + number:07d}",
            )
            for number, (title, seconds) in enumerate(titles, 1)
        ]
        ARTISTS[artist.id] = artist
        TRACKS.update({track.id: track for track in tracks})
        ALBUMS[album_id] = Album(album_id, album_name, artist.id, kind, released, tuple(t.id for t in tracks))


_fill()


def album_named(name: str) -> Album:
    """Return an album by name."""
    return ALBUMS[base62_id(f"album {name}")]


def first_playlists() -> list[Playlist]:
    """Return fresh copies of the initial playlists. Owners are account ids."""
    uris = [f"spotify:track:{item_id}" for item_id in TRACKS]
    local = "spotify:local:The+Tin+Parade:Demos:Spare+Parts+%28demo%29:181"
    mira, jonas, aiko, post = "k7Zp2Qw9Lm", "c3Xv8Tn1Rb", "w5Hs6Yd4Pq", "n9Fj0Gc3Ua"
    lists: list[tuple[str, str, str | None, bool, bool, list[str | None], set[str]]] = [
        ("Rainy tram", "Windows fogged up", mira, True, False, [*uris[0:5], None, *uris[14:19]], {jonas}),
        ("Kitchen, loud", "", mira, False, False, [*uris[11:15], local], set()),
        ("Sunday with Jonas", "We both add things", mira, False, True, [*uris[2:10]], {jonas}),
        ("Bike to work", "Exactly 24 minutes", jonas, True, False, [*uris[5:12]], {mira}),
        ("静かな朝", "", aiko, True, False, [*uris[17:19], *uris[0:2]], set()),
        ("Alt eg liker", "Og litt til", post, True, False, [*uris], {aiko}),
    ]
    return [
        Playlist(base62_id(f"playlist {name}"), name, about, owner, public, shared, content, followers=fans)
        for name, about, owner, public, shared, content, fans in lists
    ]
