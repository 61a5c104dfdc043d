"""New releases, categories, and markets."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from sandbox.api.blueprint import api
from sandbox.api.errors import not_found
from sandbox.api.members import api_url, covers
from sandbox.api.objects import simple_album
from sandbox.api.paging import page
from sandbox.catalog import ALBUMS, CATEGORIES, MARKETS
from sandbox.context import sandbox


@api.get("/markets")
def show_markets() -> Response:
    """Return where music can be played."""
    return jsonify(markets=MARKETS)


@api.get("/browse/new-releases")
def show_new_releases() -> Response:
    """Return a page of albums, newest first."""
    newest = sorted(ALBUMS.values(), key=lambda album: album.released, reverse=True)
    return jsonify(albums=page([simple_album(album) for album in newest], "browse/new-releases"))


@api.get("/browse/categories")
def show_categories() -> Response:
    """Return a page of categories."""
    shown = [_category(item_id, name) for item_id, name in CATEGORIES.items()]
    return jsonify(categories=page(shown, "browse/categories"))


@api.get("/browse/categories/<item_id>")
def show_category(item_id: str) -> Response:
    """Return a category."""
    invented = sandbox().settings.invents and item_id.isascii() and item_id.isalnum()
    if item_id not in CATEGORIES and not invented:
        raise not_found()
    return jsonify(_category(item_id, CATEGORIES.get(item_id, f"Category {item_id[:4]}")))


def _category(item_id: str, name: str) -> dict[str, Any]:
    icons = covers("album", item_id, (274,))
    return {"href": api_url(f"browse/categories/{item_id}"), "icons": icons, "id": item_id, "name": name}
