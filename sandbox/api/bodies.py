"""Parsing of request bodies."""

from __future__ import annotations

from typing import Any

from flask import request

from sandbox.api.errors import ApiError
from sandbox.api.lookup import exists


def json_body() -> dict[str, Any] | list[Any]:
    """Return the JSON object or array in the body. An empty body counts as `{}`.

    Raises:
        ApiError: 400, if the body is anything else.
    """
    if not request.get_data():
        return {}
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict | list):
        raise ApiError(400, "Error parsing JSON.")
    return body


def json_object() -> dict[str, Any]:
    """Return the JSON object in the body. An empty body counts as `{}`.

    Raises:
        ApiError: 400, if the body is anything else.
    """
    body = json_body()
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


def member_uris(body: dict[str, Any], most: int, least: int = 1) -> list[str]:
    """Return the URIs of tracks and episodes in the body or, without any there, in the query.

    Raises:
        ApiError: 400, if there are too few or too many, or one is not such a URI.
    """
    uris = body.get("uris", request.args["uris"].split(",") if "uris" in request.args else None)
    if not isinstance(uris, list) or len(uris) < least:
        raise ApiError(400, "No uris provided")
    if len(uris) > most:
        raise ApiError(400, f"You can add a maximum of {most} tracks per request.")
    if not all(isinstance(uri, str) and is_playable_uri(uri) for uri in uris):
        raise ApiError(400, "Invalid track uri in payload")
    return uris


def is_playable_uri(uri: str) -> bool:
    """Return whether the URI names a track or an episode."""
    scheme, _, rest = uri.partition(":")
    kind, _, item_id = rest.partition(":")
    return scheme == "spotify" and kind in ("track", "episode") and exists(kind, item_id)
