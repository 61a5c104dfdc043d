"""Every route that the app has, a good request to each, and a picture of all that a request could change.

Tables over these cover a new route on the day it is written.
"""

import re
from dataclasses import dataclass
from typing import Any

import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.infra.database import db, reading, writing
from app.models import OutgoingMail
from app.web.access import Access
from tests.helpers.flows import connect, login, register
from tests.helpers.sandbox_client import SandboxClient
from tests.helpers.servers import eventually

SAFE = {"GET", "HEAD", "OPTIONS"}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

# What stands in a good request, where it must differ from the document's example.
_MEMBERS = {
    "POST /api/register": {"username": "grace", "email": "grace@example.com"},
    "PATCH /api/user": {"username": "countess", "email": "countess@example.com"},
    "PUT /api/user/password": {"new_password": "another sentence, and longer"},
}
OF_THE_GATEWAY = (b"shared:", b"spotify-calls:")
# A path's variable parts: such as there are none of.
_PATH = {"session_id": "0" * 32, "name": "swagger-ui.css", "path": "me/player/devices"}


@dataclass(frozen=True)
class Route:
    method: str
    rule: str
    access: Access | None

    @property
    def template(self) -> str:
        """The path as the OpenAPI document has it."""
        return re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", self.rule)

    @property
    def path(self) -> str:
        return self.template.format(**_PATH)

    @property
    def is_gateway(self) -> bool:
        """Whether its answers are Spotify's. tests/spotify/gateway/test_proxy.py has what it promises."""
        return self.rule.startswith("/api/spotify/v1/")

    @property
    def writes(self) -> bool:
        return self.method not in SAFE

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


def every_route(app: Flask) -> list[Route]:
    """All of them, without the HEAD and OPTIONS that come with each."""
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
    """The OpenAPI document."""
    document: dict[str, Any] = app.test_client().get("/api/openapi.json").json
    return document


def operation(document: dict[str, Any], route: Route) -> dict[str, Any]:
    """What the document says of a route; nothing of pages and probes."""
    found: dict[str, Any] = document["paths"].get(route.template, {}).get(route.method.lower(), {})
    return found


def body_schema(document: dict[str, Any], route: Route) -> dict[str, Any] | None:
    """The schema of a route's body, if it takes one. What the gateway takes is Spotify's business."""
    content = operation(document, route).get("requestBody", {}).get("content", {})
    if not content or route.is_gateway:
        return None
    name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    schema: dict[str, Any] = document["components"]["schemas"][name]
    return schema


def good_body(document: dict[str, Any], route: Route) -> dict[str, Any] | None:
    """A body that would have its effect, for `ada`: made of the document's examples."""
    schema = body_schema(document, route)
    if schema is None:
        return None
    examples = {name: member.get("example", "nonsense") for name, member in schema["properties"].items()}
    return examples | _MEMBERS.get(str(route), {})


def ada(client: FlaskClient, sandbox: SandboxClient) -> FlaskClient:
    """The client, signed in as the person of the examples, with Spotify connected."""
    if login(client, "ada").status_code != 200:
        register(client, "ada")
    connect(client, sandbox)
    settled(client.application)
    return client


def settled(app: Flask) -> None:
    """Wait until nothing is left to do in the background."""
    eventually(lambda: not waiting_mails(app))


def waiting_mails(app: Flask) -> list[OutgoingMail]:
    """The mails that have not been delivered yet."""
    with app.app_context(), reading() as session:
        return list(session.scalars(sa.select(OutgoingMail).order_by(OutgoingMail.id)))


class Picture:
    """All rows of all tables and all of Redis, as they are now. Two are equal if nothing has changed.

    Without what the gateway keeps for a moment: what it has read, and how often.
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
        names = [key for key in self._redis.scan_iter(count=1000) if not key.startswith(OF_THE_GATEWAY)]
        with self._redis.pipeline() as batch:
            for name in names:
                batch.dump(name).pttl(name)
            answers: list[Any] = batch.execute()
        self.keys: dict[bytes, bytes] = dict(zip(names, answers[::2], strict=True))
        self._lives = {name: max(0, left) for name, left in zip(names, answers[1::2], strict=True)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and (self.rows, self.keys) == (other.rows, other.keys)

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        """Make everything as it was."""
        if Picture(self._app) == self:
            return
        with self._app.app_context(), writing() as session:
            for table in reversed(db.metadata.sorted_tables):
                session.execute(table.delete())
            for table in db.metadata.sorted_tables:
                names = [column.name for column in table.columns]
                rows = [dict(zip(names, row, strict=True)) for row in self.rows[table.name]]
                if rows:
                    session.execute(sa.insert(table), rows)
        with self._redis.pipeline() as batch:
            batch.flushdb()
            for key, data in self.keys.items():
                batch.restore(key, self._lives[key], data)
            batch.execute()


def send(client: FlaskClient, route: Route, **request: Any) -> TestResponse:
    return client.open(route.path, method=route.method, **request)
