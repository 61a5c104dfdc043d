"""Lookup of items by kind and id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import request

from sandbox import items
from sandbox.api.errors import ApiError, not_found
from sandbox.api.objects import full_album, full_artist, full_track
from sandbox.api.spoken_objects import full_audiobook, full_chapter, full_episode, full_show, simple_show
from sandbox.context import sandbox

_OBJECTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "album": lambda item_id: full_album(items.album(item_id)),
    "artist": lambda item_id: full_artist(items.artist(item_id)),
    "audiobook": lambda item_id: full_audiobook(items.audiobook(item_id)),
    "chapter": lambda item_id: full_chapter(items.chapter(item_id)),
    "episode": lambda item_id: full_episode(items.episode(item_id)),
    "show": lambda item_id: full_show(items.show(item_id)),
    "track": lambda item_id: full_track(items.track(item_id)),
}


def exists(kind: str, item_id: str) -> bool:
    """Return whether there is such an item."""
    if kind not in items.LISTED:
        return False
    invented = sandbox().settings.invents and items.is_well_formed(item_id)
    return invented or item_id in items.LISTED[kind]


def check_id(kind: str, item_id: str) -> None:
    """Check that there is such an item.

    Raises:
        ApiError: 400, if the id is malformed; 404, if it is unknown.
    """
    if not items.is_well_formed(item_id):
        raise ApiError(400, "Invalid base62 id")
    if not exists(kind, item_id):
        raise not_found()


def played_object(uri: str) -> dict[str, Any]:
    """Return the full object of a track or episode."""
    _, kind, item_id = uri.split(":")
    return full_object(kind, item_id)


def knows_episodes() -> bool:
    """Return whether the app says that it knows episodes. Others get less of them."""
    return "episode" in request.args.get("additional_types", "").split(",")


def listed_object(kind: str, item_id: str) -> dict[str, Any]:
    """Return an item that exists as lists contain it: shows are simplified, everything else is full."""
    return simple_show(items.show(item_id)) if kind == "show" else full_object(kind, item_id)


def full_object(kind: str, item_id: str) -> dict[str, Any]:
    """Return the full object of an item that exists."""
    return _OBJECTS[kind](item_id)
