"""Ids, links, and images in responses.

`href` names the real API, as Spotify's responses do for any host: clients must map it to the host they
are configured with. Images come from the sandbox, so pages work offline.
"""

from __future__ import annotations

from typing import Any

from flask import request

API = "https://api.spotify.com/v1"
OPEN = "https://open.spotify.com"


def links(kind: str, item_id: str) -> dict[str, Any]:
    """Return the members that every object has: id, type, uri, href, and external_urls."""
    return {
        "id": item_id,
        "type": kind,
        "uri": f"spotify:{kind}:{item_id}",
        "href": f"{API}/{kind}s/{item_id}",
        "external_urls": {"spotify": f"{OPEN}/{kind}/{item_id}"},
    }


def image_url(kind: str, item_id: str) -> str:
    """Return the URL of a picture for an object."""
    return f"{request.host_url}_sandbox/images/{kind}/{item_id}.svg"
