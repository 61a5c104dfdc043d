"""Members that many objects in responses share.

Links and images name the host that was called.
"""

from __future__ import annotations

import re
from typing import Any

from flask import g, request

from sandbox.api.blueprint import granted
from sandbox.api.errors import ApiError
from sandbox.catalog import MARKETS
from sandbox.context import sandbox

OPEN = "https://open.spotify.com"


def api_url(path: str) -> str:
    """Return the URL of a path of the Web API."""
    return f"{request.host_url}v1/{path}"


def links(kind: str, item_id: str) -> dict[str, Any]:
    """Return the members that every object has: id, type, uri, href, and external_urls."""
    return {
        "id": item_id,
        "type": kind,
        "uri": f"spotify:{kind}:{item_id}",
        "href": api_url(f"{kind}s/{item_id}"),
        "external_urls": {"spotify": f"{OPEN}/{kind}/{item_id}"},
    }


def covers(kind: str, item_id: str, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the images of an object."""
    url = f"{request.host_url}_sandbox/images/{kind}/{item_id}.svg"
    return [{"url": f"{url}?size={size}", "height": size, "width": size} for size in sizes]


def former(**members: Any) -> dict[str, Any]:
    """Return the members, unless the app is a new development-mode app."""
    return {} if sandbox().settings.mode == "dev2026" else members


def availability() -> dict[str, Any]:
    """Return the members that say whether an item can be played in the market of the request.

    Without one, apps from before 2026 get the list of markets instead.
    """
    market = _market()
    if market in MARKETS:
        return {"is_playable": True}
    if market:
        return {"is_playable": False, "restrictions": {"reason": "market"}}
    return former(available_markets=MARKETS) or {"is_playable": True}


def _market() -> str | None:
    """Return the market in the query; None without one.

    Raises:
        ApiError: 400, if it is not a country code; 403, if it is `from_token` and the scope is missing.
    """
    market = request.args.get("market") or request.args.get("country")
    if market == "from_token":
        if not granted("user-read-private"):
            raise ApiError(403, "Insufficient client scope")
        person = sandbox().people.of_account(g.token.grant.person)
        return person.country if person else None
    if market and not re.fullmatch("[A-Z]{2}", market):
        raise ApiError(400, "Invalid market code")
    return market or None
