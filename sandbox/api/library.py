"""What people save: `me/library`, lists by kind, and the former endpoints of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request

from sandbox.api.blueprint import api, caller, granted, needs
from sandbox.api.bodies import json_body
from sandbox.api.errors import ApiError
from sandbox.api.lookup import exists, listed_object
from sandbox.api.paging import page
from sandbox.clock import as_whole_seconds
from sandbox.context import sandbox
from sandbox.items import is_well_formed

MAX_URIS, MAX_IDS = 40, 50
KINDS = ("track", "album", "episode", "show", "audiobook", "user", "playlist", "artist")
MODIFY = ("user-library-modify", "user-follow-modify", "playlist-modify-public")
# Other kinds are saved in the library.
_MODIFY_BY_KIND = {
    "artist": "user-follow-modify",
    "user": "user-follow-modify",
    "playlist": "playlist-modify-public",
}
_LIST = "/me/<any(albums, audiobooks, episodes, shows, tracks):kinds>"


def save_uris(uris: Iterable[str]) -> None:
    """Save items, or follow artists, users, or playlists."""
    music, person, now = sandbox().music, caller().account_id, sandbox().clock.now_ms()
    for uri in uris:
        music.save(person, uri, now)


def remove_uris(uris: Iterable[str]) -> None:
    """Remove saved items, or stop following artists, users, or playlists."""
    for uri in uris:
        sandbox().music.remove(caller().account_id, uri)


def are_saved(uris: Iterable[str]) -> Response:
    """Return, for each URI, whether it is saved or followed."""
    return jsonify([sandbox().music.has_saved(caller().account_id, uri) for uri in uris])


def _uris() -> list[str]:
    """Return the URIs in the query, where `me/library` expects them."""
    uris = request.args.get("uris", "").split(",")
    if len(uris) > MAX_URIS:
        raise ApiError(400, "Too many uris")
    for uri in uris:
        parts = uri.split(":")
        if len(parts) != 3 or parts[0] != "spotify" or parts[1] not in KINDS or not parts[2]:
            raise ApiError(400, "Invalid uri")
    return uris


def _uris_to_change() -> list[str]:
    """Return the URIs in the query, if the token may change all of them."""
    uris = _uris()
    for uri in uris:
        if not granted(_MODIFY_BY_KIND.get(uri.split(":")[1], "user-library-modify")):
            raise ApiError(403, "Insufficient client scope")
    return uris


@api.put("/me/library")
@needs(*MODIFY)
def save() -> tuple[str, int]:
    """Save items."""
    save_uris(_uris_to_change())
    return "", 200


@api.delete("/me/library")
@needs(*MODIFY)
def remove() -> tuple[str, int]:
    """Remove saved items."""
    remove_uris(_uris_to_change())
    return "", 200


@api.get("/me/library/contains")
@needs("user-library-read", "user-follow-read", "playlist-read-private")
def contains() -> Response:
    """Return, for each URI, whether it is saved."""
    return are_saved(_uris())


@api.get(_LIST)
@needs("user-library-read")
def show_saved(kinds: str) -> Response:
    """Return saved items of a kind, newest first. The member is named after the kind in all modes."""
    kind = kinds.removesuffix("s")
    saved = sandbox().music.saved_by(caller().account_id, kind)
    entries = [
        {
            "added_at": as_whole_seconds(datetime.fromtimestamp(at / 1000, UTC)),
            kind: listed_object(kind, item_id),
        }
        for item_id, at in saved
        if exists(kind, item_id)
    ]
    return jsonify(page(entries, f"me/{kinds}"))


@api.put(_LIST)
@needs("user-library-modify")
def save_of_kind(kinds: str) -> tuple[str, int]:
    """Save items of a kind."""
    save_uris(uris_from_ids(kinds.removesuffix("s")))
    return "", 200


@api.delete(_LIST)
@needs("user-library-modify")
def remove_of_kind(kinds: str) -> tuple[str, int]:
    """Remove saved items of a kind."""
    remove_uris(uris_from_ids(kinds.removesuffix("s")))
    return "", 200


@api.get(f"{_LIST}/contains")
@needs("user-library-read")
def contains_of_kind(kinds: str) -> Response:
    """Return, for each id, whether it is saved."""
    return are_saved(uris_from_ids(kinds.removesuffix("s")))


def uris_from_ids(kind: str) -> list[str]:
    """Return URIs for the ids in the query or in the body, which may be an array or have a member `ids`.

    Raises:
        ApiError: 400, if there are none or too many, or one is malformed.
    """
    ids = request.args["ids"].split(",") if "ids" in request.args else _ids_in_body()
    if not isinstance(ids, list) or not ids:
        raise ApiError(400, "Missing required field: ids")
    if len(ids) > MAX_IDS:
        raise ApiError(400, "Too many ids requested")
    if not all(isinstance(item_id, str) and _is_id(kind, item_id) for item_id in ids):
        raise ApiError(400, "Invalid base62 id")
    return [f"spotify:{kind}:{item_id}" for item_id in ids]


def _ids_in_body() -> Any:
    """Return the ids in the body. The times in `timestamped_ids` are ignored."""
    body = json_body()
    if isinstance(body, list):
        return body
    timed = body.get("timestamped_ids")
    if isinstance(timed, list) and all(isinstance(entry, dict) for entry in timed):
        return [entry.get("id") for entry in timed]
    return body.get("ids")


def _is_id(kind: str, item_id: str) -> bool:
    """Return whether the id is well-formed. Those of users are free text."""
    return item_id != "" if kind == "user" else is_well_formed(item_id)
