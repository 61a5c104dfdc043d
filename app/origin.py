"""Turns away requests that another site made a browser send.

Three signs, checked before any view runs: a header that a plain form cannot set, the Origin,
and the browser's own Sec-Fetch-Site. No CSRF tokens are needed with them (RFC 9700 section 4.7,
OWASP CSRF cheat sheet).
"""

from flask import Flask, request

from app.problems import CrossSiteRequest
from config import Config

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def init_app(app: Flask, config: Config) -> None:
    allowed = frozenset(config.cors_origins)

    @app.before_request
    def refuse_cross_site_writes() -> None:
        # Where no view will run, the 404 or 405 says more than a 403.
        if request.method in SAFE_METHODS or request.routing_exception is not None:
            return
        origins = request.headers.getlist("Origin")
        if (
            not request.headers.get("X-Requested-With", "").strip()
            or any(origin not in allowed and origin != _own_origin() for origin in origins)
            or (request.headers.get("Sec-Fetch-Site") == "cross-site" and not origins)
        ):
            raise CrossSiteRequest


def _own_origin() -> str:
    """This API's own, for its docs page: a browser sets Host by the address it calls."""
    return request.host_url.rstrip("/")
