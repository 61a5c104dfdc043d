"""Parsing of request bodies."""

from __future__ import annotations

from typing import Any

from flask import request

from sandbox.api.errors import ApiError
from sandbox.api.lookup import exists


def json_object() -> dict[str, Any]:
    """Return the JSON object in the body. An empty body counts as `{}`.

    Raises:
        ApiError: 400, if the body is anything else.
    """
    if not request.get_data():
        return {}
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise ApiError(400, "Error parsing JSON.")
    return body


def text_member(body: dict[str, Any], name: str) -> str:
    """Return a member of the body that must be a string.

    Raises:
        ApiError: 400, if it is missing or not a string.
    """
    value = body.get(name, "")
    if not isinstance(value, str):
        raise ApiError(400, "Error parsing JSON.")
    return value


def track_ids(uris: object, most: int) -> list[str]:
    """Return the ids in a list of track URIs.

    Raises:
        ApiError: 400, if it is not such a list, or is empty or too long.
    """
    if not isinstance(uris, list) or not uris:
        raise ApiError(400, "No uris provided")
    if len(uris) > most:
        raise ApiError(400, f"You can add a maximum of {most} tracks per request.")
    ids = [uri.removeprefix("spotify:track:") if isinstance(uri, str) else "" for uri in uris]
    if not all(exists("track", item_id) for item_id in ids):
        raise ApiError(400, "Invalid track uri in payload")
    return ids
