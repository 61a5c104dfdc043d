"""Rejects requests that another site made a browser send.

Every request that changes something needs three things, checked before any view runs: a header that a plain
form cannot set, an allowed `Origin`, and a harmless `Sec-Fetch-Site`. Together they make CSRF tokens
unnecessary (RFC 9700 section 4.7, OWASP CSRF cheat sheet). The same applies to reads through the gateway,
because they cost calls to Spotify (RFC 10017), and, except for the header, to reads of the access token.
No other site may open or embed any read. Requests with a bearer token (`app.web.bearer`) are exempt.

`app.web.cors` decides which responses another origin may read.
"""

import logging
from urllib.parse import urlsplit

from flask import Flask, Request, request
from flask.globals import request_ctx

from app.web import bearer
from app.web.problems import CrossSiteRequest
from config import Config

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_GATEWAY = "spotify.web_api"
# Clients other than browsers call these, with form bodies (RFC 8628). They read no cookie.
_WITHOUT_COOKIE = frozenset({"devices.start", "devices.token"})
# Reads that use, or return, a person's access token.
_TOKEN_READS = frozenset({_GATEWAY, "spotify.playback_token"})
# Pages on any site may link to these: the OAuth callback, and pages that are the same for everyone.
_LINKABLE = frozenset({"spotify.authorize", "docs.document", "docs.page", "docs.script", "docs.asset"})


def init_app(app: Flask, config: Config) -> None:
    """Check every request before its view runs."""
    allowed = frozenset(config.cors_origins)

    @app.before_request
    def require_same_site() -> None:
        current = request_ctx.request
        # If no view will run, a 404 or 405 is more helpful than a 403.
        if current.method == "OPTIONS" or current.routing_exception is not None:
            return
        if bearer.replaces_cookie(current):
            return  # no browser adds the token by itself
        if current.method in SAFE_METHODS:
            reason = _read_rejection_reason(current, allowed)
        else:
            reason = _rejection_reason(current, allowed)
        if reason is not None:
            log.warning("cross_site_request_rejected", extra={"reason": reason})
            raise CrossSiteRequest


def needs_header(endpoint: str, method: str) -> bool:
    """Return whether a request needs an X-Requested-With header."""
    return endpoint == _GATEWAY or (method not in SAFE_METHODS and endpoint not in _WITHOUT_COOKIE)


def rejects_other_sites(path: str, endpoint: str) -> bool:
    """Return whether other sites must not even link to a route."""
    return path.startswith("/api/") and endpoint not in _LINKABLE


def require_same_site_start(config: Config) -> None:
    """Require that a page of the app, or the person, started an authorization.

    A navigation has no Origin and no custom header, but browsers send `Sec-Fetch-Site` and `Referer`.
    A client that sends no `Sec-Fetch-Site` is either not a browser or an old one, and is not restricted.

    Raises:
        CrossSiteRequest: A link or a page of another site started it.
    """
    sites = request.headers.getlist("Sec-Fetch-Site")
    if all(site in ("same-origin", "same-site", "none") for site in sites):
        return
    own = {*config.cors_origins, config.frontend_origin, _own_origin()}
    referring = request.headers.getlist("Origin") or [_origin_of(request.headers.get("Referer", ""))]
    if any(origin not in own for origin in referring):
        log.warning("cross_site_request_rejected", extra={"reason": "Sec-Fetch-Site"})
        raise CrossSiteRequest("Connect Spotify from a page of the app. Another site must not start this.")


def _read_rejection_reason(request: Request, allowed: frozenset[str]) -> str | None:
    """Return the header for which to reject a read, if any."""
    endpoint, environ = request.endpoint or "", request.environ
    if not rejects_other_sites(request.path, endpoint):
        return None
    if environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site"):
        # A navigation, or an element such as <img> or <script>, has no Origin. `fetch` always has one.
        if environ.get("HTTP_SEC_FETCH_MODE", "cors") != "cors":
            return "Sec-Fetch-Mode"
        if "HTTP_ORIGIN" not in environ:
            return "Sec-Fetch-Site"
    if endpoint in _TOKEN_READS:
        return _rejection_reason(request, allowed)
    return None


def _rejection_reason(request: Request, allowed: frozenset[str]) -> str | None:
    """Return the header for which to reject a request that changes something, if any."""
    environ = request.environ
    origin = environ.get("HTTP_ORIGIN")  # of several, a server makes one that is not allowed
    has_header = environ.get("HTTP_X_REQUESTED_WITH", "").strip() != ""
    if needs_header(request.endpoint or "", request.method) and not has_header:
        return "X-Requested-With"
    if origin is not None and origin not in allowed and origin != _own_origin():
        return "Origin"
    if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site" and origin is None:
        return "Sec-Fetch-Site"
    return None


def _origin_of(url: str) -> str:
    """Return the origin of a URL, or an empty string if it is malformed."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an unclosed bracket
        return ""
    return f"{parts.scheme}://{parts.netloc}"


def _own_origin() -> str:
    """Return this API's own origin, which its docs page sends.

    Not from `host_url`, which decodes `xn--bcher-kva.example` to `bücher.example`, unlike any Origin, and
    fails on an invalid `xn--` label.
    """
    return f"{request.scheme}://{request.host}"
