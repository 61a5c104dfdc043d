"""What comes in the bodies of writes."""

from __future__ import annotations

from typing import Any

from flask import request

from sandbox.api.errors import ApiError
from sandbox.catalogue import TRACKS


def json_object() -> dict[str, Any]:
    """The JSON object of the body; an empty body counts as an empty one.

    Raises:
        ApiError: 400, it is something else.
    """
    if not request.get_data():
        return {}
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise ApiError(400, "Error parsing JSON.")
    return body


def text_member(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise ApiError(400, "Error parsing JSON.")
    return value


def track_ids(uris: object, most: int) -> list[str]:
    """The ids of a list of track URIs.

    Raises:
        ApiError: 400, it is no such list, or is empty or too long.
    """
    if not isinstance(uris, list) or not uris:
        raise ApiError(400, "No uris provided")
    if len(uris) > most:
        raise ApiError(400, f"You can add a maximum of {most} tracks per request.")
    ids = [uri.removeprefix("spotify:track:") if isinstance(uri, str) else "" for uri in uris]
    if any(item_id not in TRACKS for item_id in ids):
        raise ApiError(400, "Invalid track uri in payload")
    return ids
