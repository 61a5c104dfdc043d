"""The Web API's endpoints, as templates for metrics and waits: paths contain ids, so there are too many.

Source: https://developer.spotify.com/documentation/web-api (its OpenAPI document of 2026-05-31).
Deprecated endpoints are included, because older applications can still call them.
"""

_LISTED = """
albums  albums/{id}  albums/{id}/tracks
artists  artists/{id}  artists/{id}/albums  artists/{id}/related-artists  artists/{id}/top-tracks
audio-analysis/{id}  audio-features  audio-features/{id}
audiobooks  audiobooks/{id}  audiobooks/{id}/chapters
browse/categories  browse/categories/{id}  browse/categories/{id}/playlists
browse/featured-playlists  browse/new-releases
chapters  chapters/{id}
episodes  episodes/{id}
markets
me
me/albums  me/albums/contains
me/audiobooks  me/audiobooks/contains
me/episodes  me/episodes/contains
me/following  me/following/contains
me/library  me/library/contains
me/player  me/player/currently-playing  me/player/devices  me/player/next  me/player/pause  me/player/play
me/player/previous  me/player/queue  me/player/recently-played  me/player/repeat  me/player/seek
me/player/shuffle  me/player/volume
me/playlists
me/shows  me/shows/contains
me/top/artists  me/top/tracks
me/tracks  me/tracks/contains
playlists/{id}  playlists/{id}/followers  playlists/{id}/followers/contains
playlists/{id}/images  playlists/{id}/items  playlists/{id}/tracks
recommendations  recommendations/available-genre-seeds
search
shows  shows/{id}  shows/{id}/episodes
tracks  tracks/{id}
users/{id}  users/{id}/playlists
"""
ENDPOINTS = frozenset(_LISTED.split())
OTHER = "other"
_FIRST_WORDS = frozenset(path.partition("/")[0] for path in ENDPOINTS)
# Everything that a 429 can concern, apart from all calls.
SCOPES = ENDPOINTS | {OTHER} | {f"{OTHER}:{word}" for word in _FIRST_WORDS}


def endpoint(path: str) -> str:
    """Return the template of a path, such as `playlists/{id}/items`, or `other` if it is unknown."""
    segments = path.split("/")
    for id_position in (None, 1, 2):
        named = "/".join(
            "{id}" if position == id_position else segment for position, segment in enumerate(segments)
        )
        if named in ENDPOINTS:
            return named
    return OTHER


def scope(path: str) -> str:
    """Return what a 429 for a path concerns: its endpoint, or unknown ones with the same first word."""
    found, first = endpoint(path), path.partition("/")[0]
    return f"{OTHER}:{first}" if found == OTHER and first in _FIRST_WORDS else found
