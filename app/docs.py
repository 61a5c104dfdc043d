"""The API's own description: the OpenAPI document, and a page to read it and try it."""

import re
from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Blueprint, Flask, Response, jsonify, render_template, send_from_directory

from app.api import Api
from app.auth.guard import Access, open_to_all
from app.origin import SAFE_METHODS
from app.parts import parts

_ASSETS = Path(flask_swagger_ui.__file__).parent / "dist"

DESCRIPTION = """\
The backend for a single-page app on Spotify. The session is a cookie, so call with credentials.
A request that changes something needs a non-empty `X-Requested-With` header and, if it carries an
`Origin`, an allowed one. Every error is a problem document (RFC 9457) with a `request_id`.

Bodies are JSON in UTF-8, of 64 KiB at most and nested 32 levels deep at most. A member that is not
listed is refused (422). A parameter in the query that is not listed is ignored.

To connect Spotify in this browser, open [/api/spotify/authorize](/api/spotify/authorize).
"""

# Swagger UI sets styles from its script and draws its icons from data: URLs.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)

_REQUESTED_WITH = {
    "in": "header",
    "name": "X-Requested-With",
    "required": True,
    "schema": {"type": "string", "pattern": r"\S"},
    "example": "XMLHttpRequest",
    "description": "Any value: another site's page cannot set it.",
}

# Errors always carry these.
_ERROR_HEADERS = {
    "UNAUTHORIZED": {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    "TOO_MANY_REQUESTS": {"Retry-After": {"required": True, "schema": {"type": "integer"}}},
    "SERVICE_UNAVAILABLE": {"Retry-After": {"required": True, "schema": {"type": "integer"}}},
}


def init_app(app: Flask, api: Api) -> None:
    blueprint = Blueprint("docs", __name__)

    @blueprint.get("/api/openapi.json")
    @open_to_all
    def openapi() -> Response:
        response = jsonify(_completed(api.spec.to_dict(), app))
        response.headers["Cache-Control"] = "no-cache"
        return response

    @blueprint.get("/api/docs")
    @open_to_all
    def page() -> Response:
        response = Response(render_template("docs.html"), content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    @blueprint.get("/api/docs/start.js")
    @open_to_all
    def script() -> Response:
        return Response(render_template("docs.js"), content_type="text/javascript; charset=utf-8")

    @blueprint.get("/api/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>")
    @open_to_all
    def asset(name: str) -> Response:
        return send_from_directory(_ASSETS, name, max_age=86_400)

    app.register_blueprint(blueprint)


def _completed(document: dict[str, Any], app: Flask) -> dict[str, Any]:
    """The document with what flask-smorest cannot know: who may call, and which headers belong to it."""
    components = document["components"]
    components["parameters"] = {"RequestedWith": _REQUESTED_WITH}
    components["securitySchemes"] = {
        "session": {"type": "apiKey", "in": "cookie", "name": parts().config.session_cookie_name}
    }
    for name, headers in _ERROR_HEADERS.items():
        components["responses"][name]["headers"] = headers
    for rule in app.url_map.iter_rules():
        path = document["paths"].get(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), {})
        for method in (rule.methods or set()) & {name.upper() for name in path}:
            operation, view = path[method.lower()], app.view_functions[rule.endpoint]
            needed = getattr(view, "access", None) is Access.SIGNED_IN
            operation["security"] = [{"session": []}] if needed else [{}, {"session": []}]
            if method not in SAFE_METHODS:
                header = {"$ref": "#/components/parameters/RequestedWith"}
                operation["parameters"] = [*operation.get("parameters", []), header]
            if "requestBody" in operation:
                operation["requestBody"]["required"] = _needs_body(document, operation["requestBody"])
            if rule.arguments:
                operation["responses"].setdefault("404", {"$ref": "#/components/responses/NOT_FOUND"})
            if view is app.view_functions["spotify.web_api"]:
                _let_spotify_answer(document, operation)
    return document


def _let_spotify_answer(document: dict[str, Any], operation: dict[str, Any]) -> None:
    """Through the gateway come Spotify's own answers too, of any status and type."""
    anything: dict[str, Any] = {"content": {"*/*": {}}}
    for status, response in operation["responses"].items():
        if "$ref" in response:
            ours = document["components"]["responses"][response["$ref"].rsplit("/", 1)[-1]]
            both = {"content": {**ours["content"], **anything["content"]}}
            # Its headers are promised for ours only.
            operation["responses"][status] = {"description": ours["description"], **both}
    for statuses in ("2XX", "4XX", "5XX"):
        operation["responses"][statuses] = {"description": "Spotify's own answer", **anything}


def _needs_body(document: dict[str, Any], body: dict[str, Any]) -> bool:
    """Whether a body has to be there: none at all is the same as an empty object."""
    content = body["content"].get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
    schema = document["components"]["schemas"].get(name)
    return schema is None or bool(schema.get("required"))
