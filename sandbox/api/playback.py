"""Player commands. All need Premium and return 204."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import request

from sandbox.api.blueprint import api, caller, needs
from sandbox.api.bodies import is_playable_uri, json_object, member_uris
from sandbox.api.errors import ApiError, PlayerError
from sandbox.api.lookup import exists
from sandbox.api.paging import number
from sandbox.api.player import settled_player
from sandbox.api.playlist_access import known_playlist
from sandbox.context import sandbox
from sandbox.player_state import Player

DONE = ("", 204)
DAY_MS = 86_400_000
MAX_URIS = 100


def command(view: Callable[[Player], None]) -> Callable[[], tuple[str, int]]:
    """Make a view for Premium users that acts on the requested device, or on the active one."""

    @wraps(view)
    @needs("user-modify-playback-state")
    def checked() -> tuple[str, int]:
        if not caller().premium:
            raise PlayerError(403, "Premium required", "PREMIUM_REQUIRED")
        player = settled_player()
        _choose_device(player, request.args.get("device_id"))
        view(player)
        return DONE

    return checked


def _choose_device(player: Player, device_id: str | None) -> None:
    if device_id is not None:
        if player.device(device_id) is None:
            raise ApiError(404, "Device not found")
        player.active = device_id
    elif player.active is None and request.path.removesuffix("/") != "/v1/me/player":
        raise PlayerError(404, "No active device found", "NO_ACTIVE_DEVICE")


def _restricted() -> PlayerError:
    return PlayerError(403, "Restriction violated", "UNKNOWN")


@api.put("/me/player")
@command
def transfer(player: Player) -> None:
    """Move playback to another device."""
    body = json_object()
    ids = body.get("device_ids")
    if not isinstance(ids, list) or len(ids) != 1 or not isinstance(ids[0], str):
        raise ApiError(400, "Exactly one device_id is supported")
    _choose_device(player, ids[0])
    if body.get("play") is True and player.current:
        player.is_playing = True


@api.put("/me/player/play")
@command
def play(player: Player) -> None:
    """Start or resume playback."""
    body = json_object()
    if "context_uri" in body or "uris" in body:
        _start(player, body)
    elif player.is_playing or player.current is None:
        raise _restricted()
    player.is_playing = True


def _start(player: Player, body: dict[str, Any]) -> None:
    context = body.get("context_uri")
    uris = _content(str(context)) if context else member_uris(body, MAX_URIS)
    if not uris:
        raise ApiError(404, "Context not found")
    position = body.get("position_ms", 0)
    if type(position) is not int or position < 0:
        raise ApiError(400, "Invalid position_ms")
    player.start(uris, _offset(uris, body.get("offset")), context, position)


def _content(context: str) -> list[str]:
    kind, _, item_id = context.removeprefix("spotify:").partition(":")
    known = known_playlist(item_id) is not None if kind == "playlist" else exists(kind, item_id)
    return sandbox().music.content_of(kind, item_id) if known else []


def _offset(uris: list[str], offset: object) -> int:
    """Return the index in a context at which to start, given as a position or a URI."""
    if not isinstance(offset, dict):
        return 0
    if offset.get("uri") in uris:
        return uris.index(offset["uri"])
    position = offset.get("position", 0)
    if type(position) is not int or not 0 <= position < len(uris):
        raise ApiError(400, "Invalid offset")
    return position


@api.put("/me/player/pause")
@command
def pause(player: Player) -> None:
    """Pause playback."""
    if not player.is_playing:
        raise _restricted()
    player.is_playing = False


@api.post("/me/player/next")
@command
def skip_next(player: Player) -> None:
    """Skip to the next track."""
    if player.current is None:
        raise _restricted()
    player.skip()


@api.post("/me/player/previous")
@command
def skip_previous(player: Player) -> None:
    """Restart the track, or skip to the previous one."""
    if player.current is None:
        raise _restricted()
    player.back()


@api.put("/me/player/seek")
@command
def seek(player: Player) -> None:
    """Move to a position in the track."""
    player.progress_ms = number("position_ms", None, 0, DAY_MS)
    player.settle(player.as_of_ms)


@api.put("/me/player/volume")
@command
def set_volume(player: Player) -> None:
    """Set the volume of the device."""
    percent = number("volume_percent", None, 0, 100)
    active = player.device(player.active or "")
    if active:
        active.volume = percent


@api.put("/me/player/shuffle")
@command
def set_shuffle(player: Player) -> None:
    """Turn shuffle on or off."""
    state = request.args.get("state")
    if state not in ("true", "false"):
        raise ApiError(400, "Invalid state")
    player.shuffle = state == "true"


@api.put("/me/player/repeat")
@command
def set_repeat(player: Player) -> None:
    """Set the repeat mode."""
    state = request.args.get("state", "")
    if state not in ("track", "context", "off"):
        raise ApiError(400, "Invalid state")
    player.repeat = state


@api.post("/me/player/queue")
@command
def add_to_queue(player: Player) -> None:
    """Add a track or episode to the queue."""
    uri = request.args.get("uri", "")
    if not is_playable_uri(uri):
        raise ApiError(400, "Invalid track uri in payload")
    player.queue.append(uri)
