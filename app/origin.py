"""Turns away requests that another site made a browser send.

Three signs, checked before any view runs: a header that a plain form cannot set, the Origin,
and the browser's own Sec-Fetch-Site. No CSRF tokens are needed with them (RFC 9700 section 4.7,
OWASP CSRF cheat sheet).

Which answers another origin may read is Flask-CORS' business; here its preflights are narrowed.
"""

import logging
from urllib.parse import urlsplit

from flask import Flask, Response, request

from app.parts import parts
from app.problems import CrossSiteRequest
from config import Config

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def init_app(app: Flask, config: Config) -> None:
    allowed = frozenset(config.cors_origins)

    @app.before_request
    def refuse_cross_site_writes() -> None:
        # Where no view will run, the 404 or 405 says more than a 403.
        if request.method in SAFE_METHODS or request.routing_exception is not None:
            return
        reason = _what_is_foreign(allowed)
        if reason is not None:
            log.warning("cross_site_refused", extra={"reason": reason})
            raise CrossSiteRequest

    @app.after_request
    def narrow_preflight(response: Response) -> Response:
        # Flask-CORS names the methods of all routes together; the automatic answer to OPTIONS this one's.
        if response.headers.pop("Access-Control-Allow-Methods", None) is not None and response.allow:
            methods = sorted(set(response.allow) - {"HEAD", "OPTIONS"})
            response.headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        return response


def _what_is_foreign(allowed: frozenset[str]) -> str | None:
    """Which of the signs speaks against the request, if any."""
    origins = request.headers.getlist("Origin")
    if not request.headers.get("X-Requested-With", "").strip():
        return "X-Requested-With"
    if any(origin not in allowed and origin != _own_origin() for origin in origins):
        return "Origin"
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and not origins:
        return "Sec-Fetch-Site"
    return None


def require_own_start() -> None:
    """Refuse to start an authorization for another site, whose link or page may have sent the browser here.

    A GET by navigation carries no Origin and no header of the app's, but browsers say where it comes from.
    A client that does not is no browser, or an old one.

    Raises:
        CrossSiteRequest
    """
    sites = request.headers.getlist("Sec-Fetch-Site")
    if all(site in ("same-origin", "same-site", "none") for site in sites):
        return
    config = parts().config
    own = {*config.cors_origins, config.frontend_origin, _own_origin()}
    referring = request.headers.getlist("Origin") or [_origin_of(request.headers.get("Referer", ""))]
    if any(origin not in own for origin in referring):
        log.warning("cross_site_refused", extra={"reason": "Sec-Fetch-Site"})
        raise CrossSiteRequest("Connect Spotify from a page of the app. Another site must not start this.")


def _origin_of(url: str) -> str:
    """The origin of a Referer; empty if it has none."""
    try:
        found = urlsplit(url)
    except ValueError:  # an unclosed bracket
        return ""
    return f"{found.scheme}://{found.netloc}"


def _own_origin() -> str:
    """This API's own, for its docs page: a browser sets Host by the address it calls.

    Not `host_url`: that spells `xn--bcher-kva.example` as `bücher.example`, which no Origin does, and
    fails on an `xn--` that means nothing.
    """
    return f"{request.scheme}://{request.host}"
