"""Which responses other origins may read (CORS). Flask-CORS decides."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, Response
from flask.globals import request_ctx
from flask_cors.core import get_cors_headers, get_cors_options, set_cors_headers
from werkzeug.datastructures import Headers

from app.web.paths import is_api
from config import Config

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_ALLOWED_HEADERS = ["Accept-Language", "Authorization", "Content-Type", "If-None-Match", "X-Requested-With"]
_EXPOSED_HEADERS = ["Age", "ETag", "Location", "Retry-After", "WWW-Authenticate", "X-Cache", "X-Request-ID"]


def init_app(app: Flask, config: Config) -> None:
    """Allow the origins in CORS_ORIGINS to call the API with credentials."""
    # Compiled, because Flask-CORS takes a string with a bracket, such as http://[::1]:80, for a pattern.
    origins = [re.compile(rf"{re.escape(origin)}\Z") for origin in config.cors_origins]
    options = get_cors_options(
        app,
        {
            "origins": origins,
            "supports_credentials": True,
            "methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
            "allow_headers": [*_ALLOWED_HEADERS, *config.cors_allow_headers],
            "expose_headers": _EXPOSED_HEADERS,
            "max_age": 3600,
            "always_send": False,
            "vary_header": False,
        },
    )

    @app.after_request
    def complete_preflight(response: Response) -> Response:
        environ = request_ctx.request.environ
        if environ["REQUEST_METHOD"] != "OPTIONS" or not is_api(environ):
            return response
        set_cors_headers(response, options)
        # Flask-CORS names the methods of all routes; the automatic response to OPTIONS names this route's.
        if response.headers.pop("Access-Control-Allow-Methods", None) is not None and response.allow:
            methods = sorted(set(response.allow) - {"HEAD", "OPTIONS"})
            response.headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        return response

    # Apart from preflights, only the origin matters.
    headers = {}
    for origin in config.cors_origins:
        decided = get_cors_headers(options, Headers({"Origin": origin}), "GET")
        headers[origin] = [(name, str(value)) for name, value in decided.items()]
    app.wsgi_app = CorsHeaders(app.wsgi_app, headers)  # type: ignore[method-assign]


class CorsHeaders:
    """WSGI middleware that adds the CORS headers, also to responses that Flask does not make."""

    def __init__(self, app: "WSGIApplication", headers: dict[str, list[tuple[str, str]]]) -> None:
        self._app = app
        self._headers_by_origin = headers

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Add the headers of the request's origin, and `Vary`, which also matters without an Origin."""
        if not is_api(environ):
            return self._app(environ, start_response)
        added = self._headers_by_origin.get(environ.get("HTTP_ORIGIN", ""), [])

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            names = [name for name, _ in headers]
            if "Vary" in names:
                where = names.index("Vary")
                headers[where] = ("Vary", f"{headers[where][1]}, Origin")
            else:
                headers.append(("Vary", "Origin"))
            if "Access-Control-Allow-Origin" not in names:  # a preflight's response has it already
                headers += added
            return start_response(status, headers, *error)

        return self._app(environ, start)
