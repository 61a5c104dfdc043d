"""Paging, and numbers in queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from flask import request

from sandbox.api.errors import ApiError
from sandbox.api.members import api_url


def number(name: str, default: int | None, least: int, most: int) -> int:
    """Return a whole number from the query.

    Raises:
        ApiError: 400 `Invalid <name>`, if it is not a number or out of range.
    """
    text = request.args.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise ApiError(400, f"Invalid {name}")
    return int(text)


def page(
    items: Sequence[Any], path: str, *, default: int = 20, most: int = 50, **query: str
) -> dict[str, Any]:
    """Return the requested part of `items` as a paging object."""
    limit = number("limit", default, 1, most)
    offset = number("offset", 0, 0, 100_000)

    def href(start: int) -> str:
        return api_url(f"{path}?{urlencode({**query, 'offset': start, 'limit': limit})}")

    return {
        "href": href(offset),
        "limit": limit,
        "next": href(offset + limit) if offset + limit < len(items) else None,
        "offset": offset,
        "previous": href(max(0, offset - limit)) if offset else None,
        "total": len(items),
        "items": list(items[offset : offset + limit]),
    }


def first_page(items: Sequence[Any], path: str) -> dict[str, Any]:
    """Return the first items as the paging object in an object that contains them."""
    limit = 50
    href = api_url(f"{path}?offset={{}}&limit={limit}")
    return {
        "href": href.format(0),
        "limit": limit,
        "next": href.format(limit) if limit < len(items) else None,
        "offset": 0,
        "previous": None,
        "total": len(items),
        "items": list(items[:limit]),
    }
