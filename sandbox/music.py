"""Players, libraries, and playlists of all people."""

from __future__ import annotations

from collections.abc import Iterable

from sandbox import items
from sandbox.catalog import TRACKS, Playlist, album_named, base62_id, first_playlists
from sandbox.clock import Clock
from sandbox.player_state import Device, Play, Player

HOUR_MS = 3_600_000
_LOCAL, _PLAYLIST = "spotify:local:", "spotify:playlist:"


class Music:
    """Everything that can change, by account id."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        now = clock.now_ms()
        self.playlists: dict[str, Playlist] = {playlist.id: playlist for playlist in first_playlists()}
        self._players = _players(now)
        # URIs with the time of saving, by person.
        self._saved = {person: _first_saved(start, now) for start, person in enumerate(self._players)}

    def player_of(self, person: str) -> Player:
        """Return the person's player. Seeded people get one on first use, as there may be many."""
        if person not in self._players:
            phone = Device(base62_id(f"device {person}"), "Phone", "Smartphone", 50)
            self._players[person] = Player([phone], as_of_ms=self._clock.now_ms())
        return self._players[person]

    def saved_by(self, person: str, kind: str) -> list[tuple[str, int]]:
        """Return what the person saved of a kind, as ids with times, newest first."""
        prefix, saved = f"spotify:{kind}:", self._saved.get(person, {})
        found = [(uri.removeprefix(prefix), at) for uri, at in saved.items() if uri.startswith(prefix)]
        return sorted(found, key=lambda entry: -entry[1])

    def has_saved(self, person: str, uri: str) -> bool:
        """Return whether the person saved or follows something."""
        playlist = self.playlists.get(uri.removeprefix(_PLAYLIST))
        return self.follows(person, playlist) if playlist else uri in self._saved.get(person, {})

    def save(self, person: str, uri: str, at: int) -> None:
        """Save or follow something."""
        if playlist := self.playlists.get(uri.removeprefix(_PLAYLIST)):
            self.follow(person, playlist)
        else:
            self._saved.setdefault(person, {})[uri] = at

    def remove(self, person: str, uri: str) -> None:
        """Undo `save`."""
        if playlist := self.playlists.get(uri.removeprefix(_PLAYLIST)):
            self.unfollow(person, playlist)
        else:
            self._saved.get(person, {}).pop(uri, None)

    def playlists_of(self, person: str) -> list[Playlist]:
        """Return the playlists that the person owns or follows."""
        return [playlist for playlist in self.playlists.values() if self.follows(person, playlist)]

    def follows(self, person: str, playlist: Playlist) -> bool:
        """Return whether the person follows the playlist, or owns it."""
        return person in playlist.followers or (playlist.owner == person and not playlist.is_deleted)

    def follow(self, person: str, playlist: Playlist) -> None:
        """Let the person follow the playlist. Owners restore theirs."""
        if playlist.owner == person:
            playlist.is_deleted = False
        else:
            playlist.followers.add(person)

    def unfollow(self, person: str, playlist: Playlist) -> None:
        """Let the person no longer follow the playlist. Owners delete theirs."""
        if playlist.owner == person:
            playlist.is_deleted = True
        playlist.followers.discard(person)

    def add_playlist(
        self, owner: str, name: str, description: str, *, public: bool, collaborative: bool
    ) -> Playlist:
        """Create a playlist."""
        item_id = base62_id(f"new playlist {len(self.playlists)}")
        self.playlists[item_id] = Playlist(item_id, name, description, owner, public, collaborative, [])
        return self.playlists[item_id]

    def invent_playlist(self, item_id: str) -> Playlist:
        """Create a playlist of Spotify's with this id."""
        content: list[str | None] = [*self.content_of("album", item_id)]
        name = f"Playlist {item_id[:4]}"
        self.playlists[item_id] = Playlist(item_id, name, "", None, True, False, content)
        return self.playlists[item_id]

    def content_of(self, kind: str, item_id: str) -> list[str]:
        """Return what plays in an album, artist, playlist, or show, as URIs. Other kinds have no content."""
        if kind == "album":
            return _uris("track", items.album(item_id).track_ids)
        if kind == "playlist":
            # Nobody else can play local files.
            return [uri for uri in self.playlists[item_id].uris if uri and not uri.startswith(_LOCAL)]
        if kind == "artist":
            return [uri for album in items.albums_of(item_id) for uri in _uris("track", album.track_ids)]
        return _uris("episode", items.show(item_id).part_ids) if kind == "show" else []


def _uris(kind: str, ids: Iterable[str]) -> list[str]:
    return [f"spotify:{kind}:{item_id}" for item_id in ids]


def _first_saved(start: int, now: int) -> dict[str, int]:
    """Return every third item of each kind, with times 30 hours apart."""
    kinds = ("album", "artist", "audiobook", "episode", "show", "track")
    return {
        f"spotify:{kind}:{item_id}": now - (n + 1) * 30 * HOUR_MS
        for kind in kinds
        for n, item_id in enumerate(list(items.LISTED[kind])[start::3])
    }


def _device(name: str, kind: str, volume: int) -> Device:
    return Device(base62_id(f"device {name}"), name, kind, volume)


def _players(now: int) -> dict[str, Player]:
    glass, tide = album_named("Glass Orchard"), album_named("Tidewriting")
    mira = Player(
        [_device("Kitchen", "Speaker", 41), _device("Mira's phone", "Smartphone", 70)], repeat="context"
    )
    mira.active = mira.devices[0].id
    mira.start(_uris("track", tide.track_ids), 1, f"spotify:album:{tide.id}", 61_234)
    jonas = Player([_device("Jonas's laptop", "Computer", 55)])
    aiko = Player([_device("デスク", "Computer", 30)])
    post = Player([_device("Stua", "TV", 25)])
    post.active = post.devices[0].id
    post.start(_uris("track", glass.track_ids), 2, f"spotify:album:{glass.id}", 12_000)
    post.is_playing = False
    players = {"k7Zp2Qw9Lm": mira, "c3Xv8Tn1Rb": jonas, "w5Hs6Yd4Pq": aiko, "n9Fj0Gc3Ua": post}
    for player in players.values():
        player.as_of_ms = now
        player.history = [
            Play(f"spotify:track:{track.id}", now - (n + 1) * 240_000, f"spotify:album:{track.album_id}")
            for n, track in enumerate(list(TRACKS.values())[:12])
        ]
    return players
