"""Ids, addresses and images in answers.

`href` names the real API, as Spotify's answers do whatever host was asked: an app that follows it
has to map it to the host it is configured with. Images come from the sandbox itself, so that
pages show something without reaching for another host.
"""

from __future__ import annotations

from typing import Any

from flask import request

API = "https://api.spotify.com/v1"
OPEN = "https://open.spotify.com"


def links(kind: str, item_id: str) -> dict[str, Any]:
    """The members every object has: id, type, uri, href and external_urls."""
    return {
        "id": item_id,
        "type": kind,
        "uri": f"spotify:{kind}:{item_id}",
        "href": f"{API}/{kind}s/{item_id}",
        "external_urls": {"spotify": f"{OPEN}/{kind}/{item_id}"},
    }


def image_url(kind: str, item_id: str) -> str:
    return f"{request.host_url}_sandbox/images/{kind}/{item_id}.svg"
