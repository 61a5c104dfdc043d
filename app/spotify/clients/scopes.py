"""Which scopes a call to the Web API needs. Spotify says only that one is missing, and not which.

Source: https://developer.spotify.com/documentation/web-api (its OpenAPI document of 2026-05-31).
"""

from collections.abc import Iterable
from urllib.parse import parse_qs

from app.infra.http_client import HttpResponse
from app.spotify.clients.call import Call

# How Spotify says that a scope is missing: https://developer.spotify.com/documentation/web-api/concepts/scopes
_MISSING_SCOPE = {401: "Permissions missing", 403: "Insufficient client scope"}
_MODIFY_PLAYLIST = ("playlist-modify-public", "playlist-modify-private")
_BY_ENDPOINT = {
    "me": ("user-read-private", "user-read-email"),
    "me/player/currently-playing": ("user-read-currently-playing",),
    "me/player/recently-played": ("user-read-recently-played",),
    "me/following": ("user-follow-read",),
    "me/following/contains": ("user-follow-read",),
    "me/playlists": ("playlist-read-private",),
    "me/top/artists": ("user-top-read",),
    "me/top/tracks": ("user-top-read",),
    "playlists/{id}/items": ("playlist-read-private",),
    "playlists/{id}/tracks": ("playlist-read-private",),
    "users/{id}/playlists": ("playlist-read-private",),
}
_BY_ENDPOINT_TO_CHANGE = {
    "me/following": ("user-follow-modify",),
    "me/playlists": _MODIFY_PLAYLIST,
    "playlists/{id}": _MODIFY_PLAYLIST,
    "playlists/{id}/followers": _MODIFY_PLAYLIST,
    "playlists/{id}/images": ("ugc-image-upload", *_MODIFY_PLAYLIST),
    "playlists/{id}/items": _MODIFY_PLAYLIST,
    "playlists/{id}/tracks": _MODIFY_PLAYLIST,
    "users/{id}/playlists": _MODIFY_PLAYLIST,
}
# For `me/library` and `me/library/contains`, by the kinds of the URIs in the query. Others: the library.
_OF_KIND = {"artist": "user-follow-read", "user": "user-follow-read", "playlist": "playlist-read-private"}
_OF_KIND_TO_CHANGE = {
    "artist": "user-follow-modify",
    "user": "user-follow-modify",
    "playlist": "playlist-modify-public",
}
_SAVED = ("albums", "audiobooks", "episodes", "shows", "tracks")  # me/albums, ...
_WITH_POSITION = ("audiobooks", "chapters", "episodes", "shows")


def lacks_scope(response: HttpResponse) -> bool:
    """Return whether the body proves that a scope is missing. Other 401s and 403s are forwarded."""
    message = _MISSING_SCOPE.get(response.status)
    if message is None:
        return False
    error = response.json_object().get("error")
    return isinstance(error, dict) and error.get("message") == message


def missing_scopes(call: Call, granted: Iterable[str]) -> list[str]:
    """Return the scopes that a rejected call may need and the grant lacks. Empty if they are not known."""
    held = set(granted)
    return [scope for scope in _needed_scopes(call) if scope not in held]


def _needed_scopes(call: Call) -> tuple[str, ...]:
    first, _, rest = call.endpoint.partition("/")
    second = rest.partition("/")[0]
    if call.endpoint in ("me/library", "me/library/contains"):
        return _library_scopes(call)
    if first == "me" and second in _SAVED:
        return ("user-library-read" if call.is_read else "user-library-modify",)
    listed = (_BY_ENDPOINT if call.is_read else _BY_ENDPOINT_TO_CHANGE).get(call.endpoint)
    if listed is not None:
        return listed
    if first == "me" and second == "player":
        return ("user-read-playback-state" if call.is_read else "user-modify-playback-state",)
    return ("user-read-playback-position",) if first in _WITH_POSITION and call.is_read else ()


def _library_scopes(call: Call) -> tuple[str, ...]:
    uris = ",".join(parse_qs(call.query).get("uris", [])).split(",")
    kinds = dict.fromkeys(uri.split(":")[1] for uri in uris if uri.count(":") == 2)
    if call.is_read:
        return tuple(dict.fromkeys(_OF_KIND.get(kind, "user-library-read") for kind in kinds))
    return tuple(dict.fromkeys(_OF_KIND_TO_CHANGE.get(kind, "user-library-modify") for kind in kinds))
