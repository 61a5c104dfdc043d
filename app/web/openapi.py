"""Completes the OpenAPI document that flask-smorest generates from routes and schemas.

Adds who may call a route, which headers it needs, and every error it may return: those that the route
declares (`Blueprint.problems`), and those that all routes of its kind share.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from flask import Flask
from werkzeug.routing import Rule

from app import errors
from app.errors import BacklineError
from app.web import csrf, problems, validation
from app.web.access import Access, rights_for
from app.web.bearer import BEARER_ONLY
from app.web.csrf import SAFE_METHODS
from app.web.problems import problem_type
from app.web.spotify_error import spotify_error

_REQUESTED_WITH = {
    "in": "header",
    "name": "X-Requested-With",
    "required": True,
    "schema": {"type": "string", "pattern": r"\S"},
    "example": "XMLHttpRequest",
    "description": "Any value: another site's page cannot set it.",
}

# Headers that these responses always have.
_ERROR_HEADERS = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": {"required": True, "schema": {"type": "integer"}}},
    503: {"Retry-After": {"required": True, "schema": {"type": "integer"}}},
}
# Additional members of some problem documents.
_MEMBERS: dict[type[BacklineError], dict[str, Any]] = {
    errors.ValidationError: {"errors": {"username": [validation.REQUIRED]}},
    errors.SpotifyAppNotAccepted: {"errors": {"client_secret": ["Spotify does not accept this secret."]}},
    errors.SpotifyReauthorizationRequired: {
        "authorize_url": "https://accounts.spotify.com/authorize?client_id=…"
    },
    errors.InsufficientScope: {
        "missing_scopes": ["user-library-modify"],
        "authorize_url": "https://accounts.spotify.com/authorize?client_id=…",
    },
}

_BEARER = (
    "A personal access token, for clients other than browsers. A request with one needs no cookie and no "
    "X-Requested-With header. The rights that it needs are listed with each operation."
)

_PROBLEM = {"$ref": "#/components/schemas/ProblemOut"}
_OAUTH_ERROR = {"$ref": "#/components/schemas/OAuthErrorOut"}
_DEFAULT_ERROR = {
    "description": "Default error response",
    "content": {problems.MEDIA_TYPE: {"schema": _PROBLEM}},
}

# What problems of the gateway and errors of Spotify have in common.
_WEB_API_ERROR = {"$ref": "#/components/schemas/WebApiErrorOut"}
_WEB_API_ERROR_OUT = {
    "type": "object",
    "description": "An error of Spotify, or a problem of the gateway, which has further members",
    "properties": {"error": {"$ref": "#/components/schemas/SpotifyErrorOut"}},
    "required": ["error"],
}
# The gateway accepts whatever Spotify accepts.
_WEB_API_QUERY = {
    "in": "query",
    "name": "query",
    "style": "form",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": True, "example": {}},
    "description": "Each member is a parameter of the Web API, such as `limit` or `market`.",
}
_WEB_API_BODY = {
    "required": False,
    "content": {
        "application/json": {"schema": {}, "example": {"uris": ["spotify:track:4iV5W9uYEdYUVa79Axb7Rh"]}},
        "image/jpeg": {"schema": {"type": "string", "contentEncoding": "base64"}},
    },
}


def complete(document: dict[str, Any], app: Flask, *, cookie_name: str) -> dict[str, Any]:
    """Complete the document. Changes it in place and returns it."""
    document["servers"] = [{"url": "/"}]  # the document's own origin
    components = document["components"]
    del components["schemas"]["PaginationMetadata"]  # unused
    components["parameters"] = {"RequestedWith": _REQUESTED_WITH}
    components["securitySchemes"] = {
        "session": {"type": "apiKey", "in": "cookie", "name": cookie_name},
        "bearerAuth": {"type": "http", "scheme": "bearer", "description": _BEARER},
    }
    components["schemas"]["WebApiErrorOut"] = _WEB_API_ERROR_OUT
    components["responses"] = {"DEFAULT_ERROR": _DEFAULT_ERROR}
    for rule in app.url_map.iter_rules():
        path = document["paths"].get(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), {})
        for method in (rule.methods or set()) & {name.upper() for name in path}:
            _complete(path[method.lower()], document, app, rule, method)
    return document


def _complete(
    operation: dict[str, Any], document: dict[str, Any], app: Flask, rule: Rule, method: str
) -> None:
    view = app.view_functions[rule.endpoint]
    # Such as `user_change`, followed by the method if the view has several.
    has_several = len((rule.methods or set()) - {"HEAD", "OPTIONS"}) > 1
    operation["operationId"] = rule.endpoint.replace(".", "_") + (f"_{method.lower()}" if has_several else "")
    needs_session = getattr(view, "access", None) is Access.SIGNED_IN
    bearer_only = rule.rule.startswith(BEARER_ONLY)
    operation["security"] = [{"session": []}] if needs_session else [{}, {"session": []}]
    if bearer_only:
        operation["security"].clear()
    rights = rights_for(view, method)
    if rights:
        operation["security"].append({"bearerAuth": sorted(rights)})
    if csrf.needs_header(rule.endpoint, method) and not bearer_only:
        header = {"$ref": "#/components/parameters/RequestedWith"}
        operation["parameters"] = [*operation.get("parameters", []), header]
    if "requestBody" in operation:
        operation["requestBody"]["required"] = _needs_body(document, operation["requestBody"])
    kinds = [
        *getattr(view, "problems", ()),
        *((errors.InvalidBearerToken, errors.InsufficientRights) if rights else ()),
        *_usual_problems(operation, rule, method, needs_session=needs_session),
    ]
    responses = {code: found for code, found in operation["responses"].items() if "$ref" not in found}
    by_status: dict[int, set[type[BacklineError]]] = {}
    for kind in kinds:
        by_status.setdefault(problem_type(kind).status, set()).add(kind)
    for status, found in sorted(by_status.items()):
        responses[str(status)] = _error_response(status, found)
    if view is app.view_functions["spotify.web_api"]:
        _allow_spotify_responses(responses, method)
        operation["parameters"] = [*operation.get("parameters", []), _WEB_API_QUERY]
        if method not in SAFE_METHODS:
            operation["requestBody"] = _WEB_API_BODY
    if getattr(view, "has_oauth_errors", False):
        _use_oauth_errors(responses)
        operation["security"] = []  # it reads no cookie
    responses["default"] = {"$ref": "#/components/responses/DEFAULT_ERROR"}
    operation["responses"] = responses


def _usual_problems(
    operation: dict[str, Any], rule: Rule, method: str, *, needs_session: bool
) -> list[type[BacklineError]]:
    """Return the errors that all routes of this kind share."""
    found: list[type[BacklineError]] = [errors.ServiceUnavailable]  # MySQL or Redis may be down
    if needs_session:
        found.append(errors.NotSignedIn)
    writes = method not in SAFE_METHODS and not rule.rule.startswith(BEARER_ONLY)
    if writes or csrf.rejects_other_sites(rule.rule, rule.endpoint):
        found.append(problems.CrossSiteRequest)
    if rule.arguments:
        found.append(problems.NotFound)
    if "requestBody" in operation:
        found += [problems.MalformedRequest, problems.PayloadTooLarge, problems.UnsupportedMediaType]
    if "422" in operation["responses"]:
        found.append(errors.ValidationError)
    return found


def _error_response(status: int, kinds: Iterable[type[BacklineError]]) -> dict[str, Any]:
    """Describe a response that may be any of these errors, with an example of each."""
    named = {
        problem_type(kind).slug: kind for kind in sorted(kinds, key=lambda kind: problem_type(kind).slug)
    }
    content = {
        "schema": _PROBLEM,
        "examples": {
            slug: {"summary": problem_type(kind).title, "value": _example(kind)}
            for slug, kind in named.items()
        },
    }
    response = {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(named)}",
        "content": {problems.MEDIA_TYPE: content},
    }
    return response | ({"headers": _ERROR_HEADERS[status]} if status in _ERROR_HEADERS else {})


def _example(kind: type[BacklineError]) -> dict[str, Any]:
    problem = problem_type(kind)
    return {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": "/api/…",
        "request_id": "6f1d7c2f0b6e4a0c9d5e3b2a1f0e9d8c",
        **_MEMBERS.get(kind, {}),
    }


def _allow_spotify_responses(responses: dict[str, Any], method: str) -> None:
    """Document that the gateway also returns Spotify's own responses, with any status and type.

    Generated clients read a response as the first type that it may have. A change that has succeeded may have
    a body that is not JSON, so they must not read that.
    """
    for response in responses.values():
        for content in response.get("content", {}).values():
            for example in content.get("examples", {}).values():
                example["value"]["error"] = spotify_error(example["value"])
        own = response.get("content", {})
        response["content"] = {"application/json": {"schema": _WEB_API_ERROR}, **own, "*/*": {}}
        response.pop("headers", None)  # only our own responses are certain to have them
    responses["200"]["content"] = {"application/json": {"schema": {}} if method == "GET" else {}, "*/*": {}}
    spotify: dict[str, dict[str, Any]] = {
        "2XX": {"application/json": {}},
        "4XX": {"application/json": {"schema": _WEB_API_ERROR}},
        "5XX": {"text/html": {"schema": {"type": "string"}}},
    }
    for statuses, content in spotify.items():
        responses[statuses] = {"description": "Spotify's own response", "content": {**content, "*/*": {}}}


def _use_oauth_errors(responses: dict[str, Any]) -> None:
    """Document that a view reports errors in OAuth's format. It never gets requests from other sites."""
    del responses["415"]  # OAuth has no such status
    for status, response in responses.items():
        if int(status) >= 400 and status != "403":
            response["content"] = {"application/json": {"schema": _OAUTH_ERROR}}
            response["description"] = HTTPStatus(int(status)).phrase


def _needs_body(document: dict[str, Any], body: dict[str, Any]) -> bool:
    """Return whether a body is required. Without one, an empty object is assumed."""
    content = body["content"].get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
    schema = document["components"]["schemas"].get(name)
    return schema is None or bool(schema.get("required"))
