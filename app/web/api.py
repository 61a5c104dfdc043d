"""Strict parsing of request bodies, and documentation of errors, for all routes."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import flask_smorest
import marshmallow as ma
import msgspec
from flask import Flask, Request, Response, request
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_accept_header

from app.errors import BacklineError
from app.infra.clock import rfc3339
from app.web import error_handlers
from app.web.problems import PROBLEM_TYPES, MalformedRequest, PayloadTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_BODY_BYTES = 64 * 1024
MAX_NESTING = 32

View = TypeVar("View", bound=Callable[..., object])


class SpotifyErrorOut(ma.Schema):
    """An error in Spotify's format (https://developer.spotify.com/documentation/web-api/concepts/api-calls)."""

    status = ma.fields.Integer(required=True)
    message = ma.fields.String(required=True)
    reason = ma.fields.String()


class ProblemOut(ma.Schema):
    """An error (RFC 9457)."""

    type = ma.fields.String(
        required=True,
        metadata={
            "format": "uri-reference",
            "enum": sorted({f"/problems/{kind.slug}" for kind in PROBLEM_TYPES.values()}),
        },
    )
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True)
    detail = ma.fields.String(required=True)
    instance = ma.fields.String(required=True)
    request_id = ma.fields.String(required=True)
    errors = ma.fields.Dict(metadata={"description": "422 only: the messages for each field"})
    authorize_url = ma.fields.String(
        metadata={"description": "spotify-reauthorization-required and insufficient-scope only"}
    )
    missing_scopes = ma.fields.List(
        ma.fields.String(), metadata={"description": "insufficient-scope only: empty if they are not known"}
    )
    return_to = ma.fields.String(
        metadata={"description": "Of a callback only: the page of the app that was asked for"}
    )
    error = ma.fields.Nested(
        SpotifyErrorOut, metadata={"description": "Problems of the gateway only, for Spotify's libraries"}
    )


class Timestamp(ma.fields.Field[datetime]):
    """A time in UTC (RFC 3339). For responses only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(metadata={"type": "string", "format": "date-time"}, **options)

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else rfc3339(value)


class Api(flask_smorest.Api):  # type: ignore[misc]
    """flask-smorest's registry of routes, with our error responses.

    The OpenAPI document is generated on demand, because that takes longer than everything else here.
    """

    ERROR_SCHEMA = ProblemOut

    def __init__(self, app: Flask) -> None:
        self._blueprints: list[Blueprint] = []
        super().__init__(app)

    def register_blueprint(self, blueprint: "Blueprint") -> None:
        """Register the routes of a blueprint."""
        self._app.extensions["flask-smorest"]["blp_name_to_api"][blueprint.name] = self
        self._app.register_blueprint(blueprint)
        self._blueprints.append(blueprint)

    def generate_document(self) -> dict[str, Any]:
        """Return the document of all routes. Call this once."""
        super()._init_spec()
        for blueprint in self._blueprints:
            blueprint.register_views_in_doc(self, self._app, self.spec, name=blueprint.name, parameters=None)
            self.spec.tag({"name": blueprint.name, "description": blueprint.description})
        document: dict[str, Any] = self.spec.to_dict()
        return document

    def _init_spec(self) -> None:
        """Do nothing. `generate_document` does this on demand."""

    def handle_http_exception(self, error: HTTPException) -> Response:
        """Respond with a problem document."""
        return error_handlers.respond(error)


class _Parser(FlaskParser):
    """webargs' parser, with a strict JSON parser."""

    DEFAULT_UNKNOWN_BY_LOCATION = FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION | {"json": ma.RAISE}

    def parse(
        self, argmap: Any, req: Request | None = None, *, location: str | None = None, **options: Any
    ) -> Any:
        if location == "query" and not request.query_string and hasattr(argmap, "EMPTY"):
            return argmap.EMPTY  # loading it would take longer than the rest of the request
        return super().parse(argmap, req, location=location, **options)

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        body = read_body(req, MAX_BODY_BYTES)
        if not body and req.method == "DELETE":
            return {}  # many clients send a Content-Type without a body
        if not req.is_json:
            if body or req.content_type:
                raise UnsupportedMediaType
            return {}
        return parse_json(body)


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]
    """flask-smorest's blueprint, with strict parsing and documented errors."""

    ARGUMENTS_PARSER = _Parser()

    def problems(self, *kinds: type[BacklineError]) -> Callable[[View], View]:
        """Document the errors that are specific to a route.

        `app.web.openapi` adds those that all routes of its kind share.
        """

        def decorate(view: View) -> View:
            view.problems = kinds  # type: ignore[attr-defined]
            return view

        return decorate


class EncodedResponse(Response):
    """A response with a complete body and headers. Werkzeug checks and copies those of others."""

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Send the response."""
        is_usual = environ["REQUEST_METHOD"] != "HEAD" and self.status_code == 200
        if not is_usual or "Location" in self.headers:
            return super().__call__(environ, start_response)
        start_response(self.status, self.headers.to_wsgi_list())
        return self.iter_encoded()


def json_response(body: bytes) -> Response:
    """Return a response whose JSON has been encoded, so that `blueprint.response` does not do it."""
    return EncodedResponse(body, content_type="application/json")


def encode_json(schema: ma.Schema, value: object) -> bytes:
    """Return the JSON of a value, as a schema documents it."""
    return msgspec.json.encode(schema.dump(value))


def is_navigation() -> bool:
    """Return whether a browser is loading a page, rather than a program asking for JSON."""
    return _prefers_page(request.headers.get("Accept", ""))


@lru_cache(maxsize=64)
def _prefers_page(accept: str) -> bool:
    accepted = parse_accept_header(accept, MIMEAccept)
    return accepted.best_match(["application/json", "text/html"], default="application/json") == "text/html"


def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a request's whole body.

    Raises:
        PayloadTooLarge: It is larger than `max_bytes`.
        MalformedRequest: Its transfer coding is malformed.
    """
    environ = request.environ
    if environ.get("CONTENT_LENGTH", "0") == "0" and "HTTP_TRANSFER_ENCODING" not in environ:
        return b""  # faster
    if (request.content_length or 0) > max_bytes:
        raise PayloadTooLarge(f"Send at most {max_bytes // 1024} KiB.")
    request.max_content_length = max_bytes + 1  # a chunked body is silently cut off at the limit
    try:
        body = request.get_data()
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 - each server raises a different one for a malformed chunk
        raise MalformedRequest("The body's transfer coding is malformed.") from None
    if len(body) > max_bytes:
        raise PayloadTooLarge(f"Send at most {max_bytes // 1024} KiB.")
    return body


def parse_json(body: bytes) -> Any:
    """Parse one JSON value in UTF-8.

    Raises:
        MalformedRequest: It is not JSON, or parsers disagree about it: duplicate members, NaN, unpaired
            surrogates, numbers out of range, or deep nesting.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique_members, parse_constant=_reject_constant)
        _validate_depth(value, MAX_NESTING)
        # Fails on 1e400 and on unpaired surrogates.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise MalformedRequest("The body is not valid JSON in UTF-8.") from None
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _validate_depth(value: Any, max_depth: int) -> None:
    if not isinstance(value, dict | list):
        return
    if max_depth == 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value:
        _validate_depth(inner, max_depth - 1)


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
