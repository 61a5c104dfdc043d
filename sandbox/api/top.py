"""Top items."""

from __future__ import annotations

from flask import Response, jsonify, request

from sandbox.api.blueprint import api, needs
from sandbox.api.errors import ApiError
from sandbox.api.lookup import full_object
from sandbox.api.paging import page
from sandbox.items import LISTED

RANGES = ("short_term", "medium_term", "long_term")


@api.get("/me/top/<any(artists, tracks):kinds>")
@needs("user-top-read")
def show_top(kinds: str) -> Response:
    """Return the catalog, rotated by time range so that the ranges differ."""
    time_range = request.args.get("time_range", "medium_term")
    if time_range not in RANGES:
        raise ApiError(400, "Invalid time range")
    kind, turn = kinds.removesuffix("s"), RANGES.index(time_range)
    ids = list(LISTED[kind])
    shown = [full_object(kind, item_id) for item_id in ids[turn:] + ids[:turn]]
    return jsonify(page(shown, f"me/top/{kinds}", time_range=time_range))
