"""Every route of the app with a valid request, and snapshots of everything that a request can change.

Tests that use them cover new routes too.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.database import db, reading, writing
from app.infra.redis_round_trip import Command, values_of
from app.models import OutgoingMail
from app.web.access import Access
from tests.helpers.flows import connect, login, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

SAFE = {"GET", "HEAD", "OPTIONS"}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

# Members of valid bodies that must differ from the examples in the OpenAPI document.
_MEMBERS = {
    "POST /api/register": {"username": "grace", "email": "grace@example.com"},
    "PATCH /api/user": {"username": "countess", "email": "countess@example.com"},
    "PUT /api/user/password": {"new_password": "another sentence, and longer"},
}
CACHE_KEYS = (b"shared:", b"spotify-calls:", b"version:", b"hourly:")
LOOKUP_COUNTS = (b"throttle:device-codes:",)  # reads are counted, because they are guesses
# Values for the variable parts of paths. Nothing with these ids exists.
_PATH = {
    "session_id": "0" * 32,
    "token_id": "999",
    "user_code": "BCDF-GHJK",
    "name": "swagger-ui.css",
    "path": "me/player/devices",
}


@dataclass(frozen=True)
class Route:
    method: str
    rule: str
    access: Access | None

    @property
    def template(self) -> str:
        """The path as in the OpenAPI document."""
        return re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", self.rule)

    @property
    def path(self) -> str:
        return self.template.format(**_PATH)

    @property
    def is_gateway(self) -> bool:
        """Whether its responses are Spotify's. tests/spotify/gateway/test_proxy.py tests those."""
        return self.rule.startswith(("/api/spotify/v1/", "/v1/"))

    @property
    def is_bearer_only(self) -> bool:
        """Whether it accepts nothing but bearer tokens. tests/web/test_bearer.py tests this."""
        return self.rule.startswith("/v1/")

    @property
    def is_oauth(self) -> bool:
        """Whether it takes forms, and has OAuth's errors. tests/auth/devices tests those."""
        return self.rule.startswith("/api/oauth/")

    @property
    def writes(self) -> bool:
        return self.method not in SAFE

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


def every_route(app: Flask) -> list[Route]:
    """Return all routes, without the HEAD and OPTIONS that Flask adds."""
    return sorted(
        (
            Route(method, rule.rule, getattr(app.view_functions[rule.endpoint], "access", None))
            for rule in app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        ),
        key=str,
    )


def writing_routes(app: Flask) -> list[Route]:
    return [route for route in every_route(app) if route.writes]


def documented(app: Flask) -> dict[str, Any]:
    """Return the OpenAPI document."""
    document: dict[str, Any] = app.test_client().get("/api/openapi.json").json
    return document


def operation(document: dict[str, Any], route: Route) -> dict[str, Any]:
    """Return what the document says about a route. It does not describe pages and probes."""
    found: dict[str, Any] = document["paths"].get(route.template, {}).get(route.method.lower(), {})
    return found


def body_schema(document: dict[str, Any], route: Route) -> dict[str, Any] | None:
    """Return the schema of a route's JSON body. Routes without a body, and the gateway, have none."""
    content = operation(document, route).get("requestBody", {}).get("content", {})
    if "application/json" not in content or route.is_gateway:
        return None
    name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    schema: dict[str, Any] = document["components"]["schemas"][name]
    return schema


def valid_body(document: dict[str, Any], route: Route) -> dict[str, Any] | None:
    """Return a valid body for `ada`, made of the examples in the document."""
    schema = body_schema(document, route)
    if schema is None:
        return None
    examples = {name: member.get("example", "nonsense") for name, member in schema["properties"].items()}
    return examples | _MEMBERS.get(str(route), {})


def valid_request(document: dict[str, Any], route: Route) -> dict[str, Any]:
    """Return the arguments of a client's method that send a valid body for `ada`."""
    if not route.is_oauth:
        return {"json": valid_body(document, route)}
    [content] = operation(document, route)["requestBody"]["content"].values()
    return {"data": {name: each["example"] for name, each in content["schema"]["properties"].items()}}


def ada(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """Sign in as the person of the examples, and connect Spotify."""
    if login(client, "ada").status_code != 200:
        register(client, "ada")
    connect(client, sandbox)
    wait_for_background_work(client.application)
    return client


def wait_for_background_work(app: Flask) -> None:
    """Wait until all emails have been delivered."""
    eventually(lambda: not waiting_mails(app))


def waiting_mails(app: Flask) -> list[OutgoingMail]:
    """Return the emails that have not been delivered yet."""
    with app.app_context(), reading() as session:
        return list(session.scalars(sa.select(OutgoingMail).order_by(OutgoingMail.id)))


class Snapshot:
    """All rows of all tables and all values in Redis. Two are equal if nothing has changed.

    The gateway's cache, its call counts, counts of reads and of each hour, and row versions are left out.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._redis: redis.Redis = app.extensions["backline"].redis
        with app.app_context(), db.engine.connect() as connection:
            self.rows = {
                table.name: [
                    tuple(row) for row in connection.execute(table.select().order_by(*table.primary_key))
                ]
                for table in db.metadata.sorted_tables
            }
        keys: list[bytes] = cast("Any", self._redis).keys()
        names = [key for key in keys if not key.startswith(CACHE_KEYS + LOOKUP_COUNTS)]
        commands: list[Command] = [(command, name) for name in names for command in ("DUMP", "PTTL")]
        replies: list[Any] = values_of(self._redis, commands) if commands else []
        self.keys: dict[bytes, bytes] = dict(zip(names, replies[::2], strict=True))
        self._ttls = {name: max(0, ttl) for name, ttl in zip(names, replies[1::2], strict=True)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and (self.rows, self.keys) == (other.rows, other.keys)

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        """Restore everything in the snapshot."""
        if Snapshot(self._app) == self:
            return
        with self._app.app_context(), writing() as session:
            for table in reversed(db.metadata.sorted_tables):
                session.execute(table.delete())
            for table in db.metadata.sorted_tables:
                names = [column.name for column in table.columns]
                rows = [dict(zip(names, row, strict=True)) for row in self.rows[table.name]]
                if rows:
                    session.execute(sa.insert(table), rows)
        self._redis.flushdb()
        if self.keys:
            keys = self.keys.items()
            values_of(self._redis, [("RESTORE", key, self._ttls[key], data) for key, data in keys])


def send(client: FlaskClient, route: Route, **request: Any) -> TestResponse:
    return client.open(route.path, method=route.method, **request)
