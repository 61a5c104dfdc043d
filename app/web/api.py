"""What every route shares: strict reading of bodies, and errors in the OpenAPI document."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import flask_smorest
import marshmallow as ma
from flask import Request, Response
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException

from app.errors import BacklineError
from app.infra.clock import rfc3339
from app.web import error_handlers
from app.web.problems import PROBLEM_TYPES, MalformedRequest, PayloadTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 64 * 1024
MAX_NESTING = 32

View = TypeVar("View", bound=Callable[..., object])


class ProblemOut(ma.Schema):
    """An error, as RFC 9457 has it."""

    type = ma.fields.String(
        required=True,
        metadata={
            "format": "uri-reference",
            "enum": sorted(f"/problems/{kind.slug}" for kind in PROBLEM_TYPES.values()),
        },
    )
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True)
    detail = ma.fields.String(required=True)
    instance = ma.fields.String(required=True)
    request_id = ma.fields.String(required=True)
    errors = ma.fields.Dict(metadata={"description": "422 only: field -> messages"})
    authorize_url = ma.fields.String(metadata={"description": "spotify-reauthorization-required only"})


class Timestamp(ma.fields.Field[datetime]):
    """A moment, as RFC 3339 in UTC. For answers only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(metadata={"type": "string", "format": "date-time"}, **options)

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else rfc3339(value)


class Api(flask_smorest.Api):  # type: ignore[misc]
    """flask-smorest's registry of routes, with our errors in the place of its own."""

    ERROR_SCHEMA = ProblemOut

    def handle_http_exception(self, error: HTTPException) -> Response:
        return error_handlers.respond(error)


class _Parser(FlaskParser):
    """webargs' parser, with a JSON reader that refuses what a lenient one would guess at."""

    DEFAULT_UNKNOWN_BY_LOCATION = FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION | {"json": ma.RAISE}

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        body = read_body(req, MAX_BODY_BYTES)
        if not body and req.method == "DELETE":
            return {}  # many clients send the type of a body with every request, also without a body
        if not req.is_json:
            if body or req.content_type:
                raise UnsupportedMediaType
            return {}
        return parse_json(body)


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]
    ARGUMENTS_PARSER = _Parser()

    def problems(self, *kinds: type[BacklineError]) -> Callable[[View], View]:
        """Say in the OpenAPI document with which errors of its own a route may answer.

        Those that all routes of its kind share are known there (`app.web.openapi`).
        """

        def decorate(view: View) -> View:
            view.problems = kinds  # type: ignore[attr-defined]
            return view

        return decorate


def read_body(request: Request, most: int) -> bytes:
    """A request's whole body, of `most` bytes at most.

    Raises:
        PayloadTooLarge
        MalformedRequest: its transfer coding is broken.
    """
    if (request.content_length or 0) > most:
        raise PayloadTooLarge(f"Send at most {most // 1024} KiB.")
    request.max_content_length = most + 1  # a chunked body ends at the limit, without a word
    try:
        body = request.get_data()
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 - each server has its own for a chunk that is none
        raise MalformedRequest("The body's transfer coding is broken.") from None
    if len(body) > most:
        raise PayloadTooLarge(f"Send at most {most // 1024} KiB.")
    return body


def parse_json(body: bytes) -> Any:
    """Read one JSON value in UTF-8.

    Raises:
        MalformedRequest: for what is no JSON, and for what two readers could take for two
            things: duplicate members, NaN, unpaired surrogates, numbers beyond all bounds, deep nesting.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique_members, parse_constant=_refuse)
        _refuse_nesting(value, MAX_NESTING)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # fails on 1e400, and on half a pair
    except (ValueError, RecursionError):
        raise MalformedRequest("The body is not valid JSON in UTF-8.") from None
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _refuse_nesting(value: Any, most: int) -> None:
    if not isinstance(value, dict | list):
        return
    if most == 0:
        raise ValueError("nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value:
        _refuse_nesting(inner, most - 1)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
