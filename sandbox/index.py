"""The page at `/` for controlling the sandbox by hand, and the generated images."""

from __future__ import annotations

import colorsys
import hashlib
import secrets
from collections.abc import Callable
from html import escape
from itertools import islice

from flask import Blueprint, Response, abort, make_response, render_template

from sandbox import items
from sandbox.catalog import Album, Artist, Playlist
from sandbox.context import sandbox
from sandbox.control import require_loopback
from sandbox.people import Person
from sandbox.settings import MODES
from sandbox.spoken import Series

index = Blueprint("index", __name__)

NEWEST_CALLS = 12
LISTED_APPLICATIONS = 10


@index.get("/")
def show_index() -> Response:
    """Show the control page."""
    require_loopback()
    state = sandbox()
    nonce = secrets.token_urlsafe(16)
    page = render_template(
        "index.html",
        people=state.people_as_json(state.people.defaults),
        seeded=len(state.people) - len(state.people.defaults),
        settings=state.settings,
        modes=MODES,
        calls=state.journal.newest(NEWEST_CALLS),
        now=state.clock.now(),
        offset=state.clock.offset,
        faults=state.faults.as_json()["faults"],
        applications=list(islice(state.applications, LISTED_APPLICATIONS)),
        total=len(state.applications),
        nonce=nonce,
    )
    response = make_response(page)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response


@index.get("/_sandbox/images/<kind>/<item_id>.svg")
def show_image(kind: str, item_id: str) -> Response:
    """Draw a picture from the id alone, so that an object always looks the same."""
    letter = _letter(kind, item_id)
    digest = hashlib.sha256(f"{kind} {item_id}".encode()).digest()
    one, two = (_color(digest[n] / 256, lightness) for n, lightness in ((0, 0.52), (1, 0.3)))
    x, y = 20 + digest[2] % 60, 20 + digest[3] % 60
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="640" viewBox="0 0 100 100">'
        f'<rect width="100" height="100" fill="{two}"/><circle cx="{x}" cy="{y}" r="46" fill="{one}"/>'
        '<text x="50" y="52" fill="#fff" font-family="system-ui,sans-serif" font-size="42" '
        f'font-weight="700" text-anchor="middle" dominant-baseline="central">{escape(letter)}</text></svg>'
    )
    response = Response(svg, content_type="image/svg+xml")
    response.headers["Cache-Control"] = "public, max-age=86400"
    return response


def _letter(kind: str, item_id: str) -> str:
    state = sandbox()
    find: dict[str, Callable[[str], Person | Album | Artist | Series | Playlist | None]] = {
        "person": state.people.of_account,
        "album": items.album,
        "artist": items.artist,
        "audiobook": items.audiobook,
        "show": items.show,
        "playlist": state.music.playlists.get,
    }
    found = find[kind](item_id) if kind in find else None
    if found is None:
        abort(404)
    return found.name[:1].upper()


def _color(hue: float, lightness: float) -> str:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.55)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"
