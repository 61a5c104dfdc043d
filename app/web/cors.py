"""Which responses other origins may read (CORS)."""

import re
from typing import TYPE_CHECKING

from flask import Flask, Response
from flask_cors import CORS

from config import Config

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_EXPOSED_HEADERS = ["Age", "Location", "Retry-After", "X-Cache", "X-Request-ID"]


def init_app(app: Flask, config: Config) -> None:
    """Allow the origins in CORS_ORIGINS to call the API with credentials."""

    @app.after_request  # runs after the function that Flask-CORS registers below
    def narrow_preflight(response: Response) -> Response:
        # Flask-CORS names the methods of all routes; the automatic response to OPTIONS names this route's.
        if response.headers.pop("Access-Control-Allow-Methods", None) is not None and response.allow:
            methods = sorted(set(response.allow) - {"HEAD", "OPTIONS"})
            response.headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        return response

    CORS(
        app,
        resources=r"/api/*",
        # Compiled, because Flask-CORS takes a string with a bracket, such as http://[::1]:80, for a pattern.
        origins=[re.compile(rf"{re.escape(origin)}\Z") for origin in config.cors_origins],
        supports_credentials=True,
        methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Content-Type", "X-Requested-With", *config.cors_allow_headers],
        expose_headers=_EXPOSED_HEADERS,
        max_age=3600,
        always_send=False,
    )


def response_headers(environ: "WSGIEnvironment", config: Config) -> dict[str, str]:
    """Return the CORS headers of a response that Flask does not make, such as `ErrorMiddleware`'s."""
    if not environ.get("PATH_INFO", "").startswith("/api/"):
        return {}
    headers, origin = {"Vary": "Origin"}, environ.get("HTTP_ORIGIN", "")
    if origin in config.cors_origins:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Expose-Headers"] = ", ".join(_EXPOSED_HEADERS)
    return headers
