"""The OpenAPI document, and a page on which to read it and try the API."""

import hashlib
import threading
from functools import cache
from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Flask, Response, render_template, request, send_from_directory

from app.web import openapi
from app.web.access import public
from app.web.api import Api
from config import Config

_ASSETS = Path(flask_swagger_ui.__file__).parent / "dist"

DESCRIPTION = """\
The backend for a single-page app on Spotify. The session is in a cookie, so send requests with credentials.
Every request that changes something or goes to `/api/spotify/v1/` needs a non-empty `X-Requested-With`
header. If it has an `Origin`, that must be an allowed one. Every error is a problem document (RFC 9457) with
a `request_id`. `/api/oauth/` is different: it takes forms without that header, and has OAuth's errors.

Bodies are JSON in UTF-8, at most 64 KiB long and nested at most 32 levels deep. Unknown members are rejected
(422); unknown query parameters are ignored. `/api/spotify/v1/` and `/v1/` are different: they forward any
query, and any body of up to 256 KiB that Spotify accepts.

To connect Spotify in this browser, open [/api/spotify/authorize](/api/spotify/authorize).
"""

# Swagger UI sets styles from its script and loads icons from data: URLs.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


def init_app(app: Flask, api: Api, config: Config) -> None:
    """Add the document and the page."""
    blueprint = Blueprint("docs", __name__)
    building = threading.Lock()

    @cache
    def body() -> bytes:
        completed = openapi.complete(api.generate_document(), app, cookie_name=config.session_cookie_name)
        return app.json.dumps(completed, separators=(",", ":")).encode()

    @cache
    def etag() -> str:
        return hashlib.sha256(body()).hexdigest()[:32]

    @blueprint.get("/api/openapi.json")
    @public
    def document() -> Response:
        with building:  # the first request builds it, and the others wait
            response = Response(body(), content_type="application/json")
            response.set_etag(etag())
        response.headers["Cache-Control"] = "no-cache"
        # Not `make_conditional`: it turns other conditions into a 412 that is no problem document.
        if request.if_none_match.contains_weak(etag()):
            response.status_code = 304
            response.set_data(b"")
            del response.headers["Content-Type"], response.headers["Content-Length"]
        return response

    @blueprint.get("/api/docs")
    @public
    def page() -> Response:
        response = Response(render_template("docs.html"), content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    @blueprint.get("/api/docs/start.js")
    @public
    def script() -> Response:
        return Response(render_template("docs.js"), content_type="text/javascript; charset=utf-8")

    @blueprint.get("/api/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>")
    @public
    def asset(name: str) -> Response:
        response = send_from_directory(_ASSETS, name, max_age=86_400)
        response.cache_control.public = False  # Werkzeug adds it, and max-age is enough
        return response

    app.register_blueprint(blueprint)
