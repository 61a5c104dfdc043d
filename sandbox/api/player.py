"""Reads of the player."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from flask import Response, jsonify, make_response, request

from sandbox.api.blueprint import api, caller, needs
from sandbox.api.errors import ApiError
from sandbox.api.lookup import knows_episodes, played_object
from sandbox.api.members import api_url
from sandbox.api.objects import context, device
from sandbox.api.paging import number
from sandbox.clock import as_text
from sandbox.context import sandbox
from sandbox.player_state import MAX_HISTORY, Play, Player


def settled_player() -> Player:
    """Return the caller's player, updated to the sandbox's current time."""
    state = sandbox()
    player = state.music.player_of(caller().account_id)
    player.settle(state.clock.now_ms())
    return player


@api.get("/me/player")
@needs("user-read-playback-state", player_read=True)
def show_player() -> Response:
    """Return the playback state, or 204 if nothing is playing."""
    player = settled_player()
    active = player.device(player.active or "")
    if active is None:
        return make_response("", 204)
    return jsonify(
        {
            "device": device(active, player.active),
            "shuffle_state": player.shuffle,
            "smart_shuffle": False,
            "repeat_state": player.repeat,
            **_now_playing(player),
        }
    )


@api.get("/me/player/currently-playing")
@needs("user-read-currently-playing", "user-read-playback-state", player_read=True)
def show_currently_playing() -> Response:
    """Return the current track, or 204 if nothing is playing."""
    player = settled_player()
    if player.active is None:
        return make_response("", 204)
    return jsonify(_now_playing(player))


def _now_playing(player: Player) -> dict[str, Any]:
    kind = player.current.split(":")[1] if player.current else None
    shown = kind == "track" or knows_episodes()
    return {
        "timestamp": player.as_of_ms,
        "context": context(player.context),
        "progress_ms": player.progress_ms if player.current else None,
        "item": played_object(player.current) if player.current and shown else None,
        "currently_playing_type": kind or "unknown",
        "actions": {"disallows": {"resuming" if player.is_playing else "pausing": True}},
        "is_playing": player.is_playing,
    }


@api.get("/me/player/devices")
@needs("user-read-playback-state", player_read=True)
def show_devices() -> Response:
    """Return the person's devices."""
    player = settled_player()
    return jsonify(devices=[device(found, player.active) for found in player.devices])


@api.get("/me/player/queue")
@needs("user-read-currently-playing", "user-read-playback-state", player_read=True)
def show_queue() -> Response:
    """Return the current track and the queue."""
    player = settled_player()
    playing = player.current if player.active else None
    return jsonify(
        currently_playing=played_object(playing) if playing else None,
        queue=[played_object(uri) for uri in player.upcoming()] if playing else [],
    )


@api.get("/me/player/recently-played")
@needs("user-read-recently-played")
def show_recently_played() -> Response:
    """Return recently played tracks, newest first. `before` and `after` (ms) exclude each other.

    As on Spotify, the last page is empty: every other one has a `next`.
    """
    limit = number("limit", 20, 1, MAX_HISTORY)
    if "before" in request.args and "after" in request.args:
        raise ApiError(400, "Only one of before and after may be given")
    latest = number("before", 2**62, 0, 2**62)
    earliest = number("after", 0, 0, 2**62)
    tracks = [play for play in settled_player().history if play.uri.startswith("spotify:track:")]
    found = [play for play in tracks if earliest < play.played_at_ms < latest]
    direction = "after" if "after" in request.args else "before"
    plays = found[-limit:] if direction == "after" else found[:limit]
    cursors = {"after": str(plays[0].played_at_ms), "before": str(plays[-1].played_at_ms)} if plays else None
    asked = {direction: request.args[direction]} if direction in request.args else {}
    return jsonify(
        {
            "items": [_played(play) for play in plays],
            "next": _page_url(limit, {direction: cursors[direction]}) if cursors else None,
            "cursors": cursors,
            "limit": limit,
            "href": _page_url(limit, asked),
        }
    )


def _played(play: Play) -> dict[str, Any]:
    return {
        "track": played_object(play.uri),
        "played_at": as_text(datetime.fromtimestamp(play.played_at_ms / 1000, UTC)),
        "context": context(play.context),
    }


def _page_url(limit: int, cursor: dict[str, str]) -> str:
    return api_url(f"me/player/recently-played?{urlencode({**cursor, 'limit': limit})}")
