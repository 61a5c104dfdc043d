"""The OpenAPI document: what flask-smorest makes of routes and schemas, completed with what it cannot know.

That is who may call, which headers belong to a request, and every problem that an answer may be: each
route names those of its own (`Blueprint.problems`), the rest follow from what it is.
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
from app.web.access import Access
from app.web.csrf import SAFE_METHODS
from app.web.problems import problem_type

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
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": {"required": True, "schema": {"type": "integer"}}},
    503: {"Retry-After": {"required": True, "schema": {"type": "integer"}}},
}
# Members that some problems have besides those that all have.
_MEMBERS: dict[type[BacklineError], dict[str, Any]] = {
    errors.ValidationError: {"errors": {"username": [validation.REQUIRED]}},
    errors.SpotifyReauthorizationRequired: {
        "authorize_url": "https://accounts.spotify.com/authorize?client_id=…"
    },
}

_PROBLEM = {"$ref": "#/components/schemas/ProblemOut"}
_DEFAULT_ERROR = {
    "description": "Default error response",
    "content": {problems.MEDIA_TYPE: {"schema": _PROBLEM}},
}

# What a body for the gateway may be: whatever Spotify takes there.
_WEB_API_BODY = {
    "required": False,
    "content": {
        "application/json": {"schema": {}, "example": {"uris": ["spotify:track:4iV5W9uYEdYUVa79Axb7Rh"]}},
        "image/jpeg": {"schema": {"type": "string", "contentEncoding": "base64"}},
    },
}


def complete(document: dict[str, Any], app: Flask, *, cookie_name: str) -> dict[str, Any]:
    """The document of flask-smorest, with what it cannot know."""
    document["servers"] = [{"url": "/"}]  # where the document itself is
    components = document["components"]
    del components["schemas"]["PaginationMetadata"]  # which nothing here has
    components["parameters"] = {"RequestedWith": _REQUESTED_WITH}
    components["securitySchemes"] = {"session": {"type": "apiKey", "in": "cookie", "name": cookie_name}}
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
    # Such as `user_change`; with the method where one view has several.
    several = len((rule.methods or set()) - {"HEAD", "OPTIONS"}) > 1
    operation["operationId"] = rule.endpoint.replace(".", "_") + (f"_{method.lower()}" if several else "")
    needed = getattr(view, "access", None) is Access.SIGNED_IN
    operation["security"] = [{"session": []}] if needed else [{}, {"session": []}]
    if csrf.needs_header(rule.endpoint, method):
        header = {"$ref": "#/components/parameters/RequestedWith"}
        operation["parameters"] = [*operation.get("parameters", []), header]
    if "requestBody" in operation:
        operation["requestBody"]["required"] = _needs_body(document, operation["requestBody"])
    kinds = [*getattr(view, "problems", ()), *_usual_problems(operation, rule, method, signed_in=needed)]
    responses = {code: answer for code, answer in operation["responses"].items() if "$ref" not in answer}
    by_status: dict[int, set[type[BacklineError]]] = {}
    for kind in kinds:
        by_status.setdefault(problem_type(kind).status, set()).add(kind)
    for status, found in sorted(by_status.items()):
        responses[str(status)] = _error_response(status, found)
    if view is app.view_functions["spotify.web_api"]:
        _let_spotify_answer(responses)
        if method not in SAFE_METHODS:
            operation["requestBody"] = _WEB_API_BODY
    responses["default"] = {"$ref": "#/components/responses/DEFAULT_ERROR"}
    operation["responses"] = responses


def _usual_problems(
    operation: dict[str, Any], rule: Rule, method: str, *, signed_in: bool
) -> list[type[BacklineError]]:
    """What may happen at any route of this kind."""
    found: list[type[BacklineError]] = [errors.ServiceUnavailable]  # MySQL or Redis may be away
    if signed_in:
        found.append(errors.NotSignedIn)
    if method not in SAFE_METHODS or csrf.rejects_other_sites(rule.rule, rule.endpoint):
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
    answer = {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(named)}",
        "content": {problems.MEDIA_TYPE: content},
    }
    return answer | ({"headers": _ERROR_HEADERS[status]} if status in _ERROR_HEADERS else {})


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


def _let_spotify_answer(responses: dict[str, Any]) -> None:
    """Through the gateway come Spotify's own answers too, of any status and type."""
    for response in responses.values():
        response.setdefault("content", {})["*/*"] = {}
        response.pop("headers", None)  # which only ours are sure to have
    for statuses in ("2XX", "4XX", "5XX"):
        responses[statuses] = {"description": "Spotify's own answer", "content": {"*/*": {}}}


def _needs_body(document: dict[str, Any], body: dict[str, Any]) -> bool:
    """Whether a body has to be there: none at all is the same as an empty object."""
    content = body["content"].get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
    schema = document["components"]["schemas"].get(name)
    return schema is None or bool(schema.get("required"))
