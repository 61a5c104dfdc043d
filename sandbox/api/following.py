"""Followed artists and users."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from flask import Response, jsonify, request

from sandbox.api.blueprint import api, caller, needs
from sandbox.api.errors import ApiError
from sandbox.api.library import are_saved, remove_uris, save_uris, uris_from_ids
from sandbox.api.lookup import exists, full_object
from sandbox.api.members import api_url
from sandbox.api.paging import number
from sandbox.context import sandbox


def _kind(*allowed: str) -> str:
    kind = request.args.get("type", "")
    if kind not in allowed:
        raise ApiError(400, "Invalid type")
    return kind


@api.get("/me/following")
@needs("user-follow-read")
def show_followed() -> Response:
    """Return a page of followed artists. `after` is the id of the last artist of the page before."""
    kind = _kind("artist")
    limit, after = number("limit", 20, 1, 50), request.args.get("after")
    saved = sandbox().music.saved_by(caller().account_id, kind)
    ids = [item_id for item_id, _ in saved if exists(kind, item_id)]
    shown = ids[ids.index(after) + 1 if after in ids else 0 :][:limit]
    last = shown[-1] if shown and shown[-1] != ids[-1] else None

    def href(**cursor: str) -> str:
        query: dict[str, Any] = {"type": kind, **cursor, "limit": limit}
        return api_url(f"me/following?{urlencode(query)}")

    page = {
        "href": href(**({"after": after} if after else {})),
        "limit": limit,
        "next": href(after=last) if last else None,
        "cursors": {"after": last},
        "total": len(ids),
        "items": [full_object(kind, item_id) for item_id in shown],
    }
    return jsonify(artists=page)


@api.put("/me/following")
@needs("user-follow-modify")
def follow() -> tuple[str, int]:
    """Follow artists or users."""
    save_uris(uris_from_ids(_kind("artist", "user")))
    return "", 204


@api.delete("/me/following")
@needs("user-follow-modify")
def unfollow() -> tuple[str, int]:
    """Stop following artists or users."""
    remove_uris(uris_from_ids(_kind("artist", "user")))
    return "", 204


@api.get("/me/following/contains")
@needs("user-follow-read")
def follows() -> Response:
    """Return, for each id, whether the user follows that artist or user."""
    return are_saved(uris_from_ids(_kind("artist", "user")))
