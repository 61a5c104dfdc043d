"""Turns away requests that another site made a browser send.

Three signs, checked before any view runs: a header that a plain form cannot set, the Origin,
and the browser's own Sec-Fetch headers. No CSRF tokens are needed with them (RFC 9700 section 4.7,
OWASP CSRF cheat sheet). They protect what changes something, and reads through the gateway, which cost
calls to Spotify and return what Spotify sends (RFC 10017). A read of the access token needs no header, but
an allowed Origin. Other sites must not open or embed any read.

Which answers another origin may read is Flask-CORS' business; here its preflights are narrowed.
"""

import logging
from urllib.parse import urlsplit

from flask import Flask, Response, request

from app.services import services
from app.web.problems import CrossSiteRequest
from config import Config

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_GATEWAY = "spotify.web_api"
# Reads with a person's access token, or of the token itself.
_TOKEN_READS = frozenset({_GATEWAY, "spotify.playback_token"})
# What a link on any page may lead to: where Spotify sends people back to, and what depends on nobody.
_MAY_BE_LINKED = frozenset({"spotify.authorize", "docs.document", "docs.page", "docs.script", "docs.asset"})


def init_app(app: Flask, config: Config) -> None:
    allowed = frozenset(config.cors_origins)

    @app.before_request
    def refuse_cross_site_requests() -> None:
        # Where no view will run, the 404 or 405 says more than a 403.
        if request.method == "OPTIONS" or request.routing_exception is not None:
            return
        if request.method in SAFE_METHODS:
            reason = _read_rejection_reason(allowed)
        else:
            reason = _rejection_reason(allowed)
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


def needs_header(endpoint: str, method: str) -> bool:
    """Whether a request needs an X-Requested-With header."""
    return method not in SAFE_METHODS or endpoint == _GATEWAY


def rejects_other_sites(path: str, endpoint: str) -> bool:
    """Whether another site must not even link to this."""
    return path.startswith("/api/") and endpoint not in _MAY_BE_LINKED


def _read_rejection_reason(allowed: frozenset[str]) -> str | None:
    """Which of the signs speaks against a read, if any."""
    endpoint, origins = request.endpoint or "", request.headers.getlist("Origin")
    if not rejects_other_sites(request.path, endpoint):
        return None
    if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        # A navigation, or an element such as <img> or <script>, has no Origin. `fetch` always has one.
        if request.headers.get("Sec-Fetch-Mode", "cors") != "cors":
            return "Sec-Fetch-Mode"
        if not origins:
            return "Sec-Fetch-Site"
    if endpoint in _TOKEN_READS:
        return _rejection_reason(allowed)
    return None


def _rejection_reason(allowed: frozenset[str]) -> str | None:
    """Which of the signs speaks against the request, if any."""
    origins = request.headers.getlist("Origin")
    has_header = request.headers.get("X-Requested-With", "").strip() != ""
    if needs_header(request.endpoint or "", request.method) and not has_header:
        return "X-Requested-With"
    if any(origin not in allowed and origin != _own_origin() for origin in origins):
        return "Origin"
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and not origins:
        return "Sec-Fetch-Site"
    return None


def require_same_site_start() -> None:
    """Refuse to start an authorization for another site, whose link or page may have sent the browser here.

    A GET by navigation carries no Origin and no header of the app's, but browsers say where it comes from.
    A client that does not is no browser, or an old one.

    Raises:
        CrossSiteRequest
    """
    sites = request.headers.getlist("Sec-Fetch-Site")
    if all(site in ("same-origin", "same-site", "none") for site in sites):
        return
    config = services().config
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
