"""The round trips that each route makes to Redis and to MariaDB, when nothing has changed since the last one.

A person is signed in and connected, and the process has seen the session before. If a route makes more than
these, something reads or writes more than before. If it makes fewer, lower the numbers.
"""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.infra import mysql
from app.spotify.clients import rate_limit
from tests.helpers import route_matrix
from tests.helpers.flows import create_token
from tests.helpers.round_trips import counting
from tests.helpers.route_matrix import Route, Snapshot, every_route, valid_request
from tests.helpers.sandbox_client import SandboxClient

pytestmark = [
    pytest.mark.parametrize("database_url", ["mariadb"], indirect=True),
    pytest.mark.settings(GATEWAY_SHARE_SECONDS="60"),  # also on a slow machine, the second read is a hit
]

# Round trips to Redis, and to the database: statements, BEGIN, COMMIT, ROLLBACK, and pings.
ROUND_TRIPS = {
    "DELETE /api/spotify": (5, 11),
    "DELETE /api/spotify/app": (1, 6),
    "DELETE /api/spotify/v1/{path}": (2, 0),
    "DELETE /api/user": (15, 18),
    "DELETE /api/user/sessions": (14, 18),
    "DELETE /api/user/tokens/{token_id}": (3, 4),
    "DELETE /api/user/sessions/{session_id}": (6, 8),
    "DELETE /v1/{path}": (0, 0),
    "GET /.well-known/jwks.json": (0, 0),
    "GET /api/docs": (0, 0),
    "GET /api/docs/start.js": (0, 0),
    "GET /api/docs/{name}": (0, 0),
    "GET /api/openapi.json": (0, 0),
    "GET /api/session": (1, 0),
    "GET /api/spotify": (1, 0),
    "GET /api/spotify/app": (1, 4),
    "GET /api/spotify/authorize": (1, 0),
    "GET /api/spotify/token": (1, 0),
    "GET /api/spotify/v1/{path}": (1, 0),
    "GET /api/user": (1, 0),
    "GET /api/user/devices/{user_code}": (4, 0),
    "GET /api/user/export": (8, 19),
    "GET /api/user/tokens": (1, 5),
    "GET /api/user/sessions": (8, 4),
    "GET /livez": (0, 0),
    "GET /metrics": (2, 8),
    "GET /operator": (4, 28),  # 24 later than ten minutes past the hour: then the last hour is remembered
    "GET /operator/style.css": (0, 0),
    "GET /operator/update.js": (0, 0),
    "GET /readyz": (0, 0),
    "GET /v1/{path}": (0, 0),
    "PATCH /api/user": (8, 20),
    "POST /api/email-verification": (2, 10),
    "POST /api/login": (11, 8),
    "POST /api/logout": (3, 0),
    "POST /api/oauth/device_authorization": (3, 0),
    "POST /api/oauth/token": (1, 0),
    "POST /api/password-reset": (3, 10),
    "POST /api/user/tokens": (5, 14),
    "POST /api/register": (9, 26),
    "POST /api/session/jwt": (1, 0),
    "POST /api/spotify/v1/{path}": (2, 0),
    "POST /api/user/devices/{user_code}": (4, 4),
    "POST /v1/{path}": (0, 0),
    "PUT /api/email-change": (1, 5),
    "PUT /api/email-verification": (1, 5),
    "PUT /api/password-reset": (1, 5),
    "PUT /api/spotify/app": (3, 0),
    "PUT /api/spotify/v1/{path}": (2, 0),
    "PUT /api/user/password": (14, 19),
    "PUT /v1/{path}": (0, 0),
}


@pytest.fixture(autouse=True)
def _no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what a slow machine would do between two requests: checking connections, and the budget."""
    for module in (mysql, rate_limit):
        monkeypatch.setattr(module, "CHECK_SECONDS", 600.0)


@pytest.mark.requirement("M4")
def test_round_trips_of_every_route(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    route_matrix.ada(client, sandbox)
    document = route_matrix.documented(app)
    found = {}
    before, cookies = Snapshot(app), dict(client._cookies or {})
    for route in every_route(app):
        request = valid_request(document, route)
        for _ in range(2):  # the second one finds what the first one has remembered
            made = request_counted(client, app, route, request)
            if route.writes:
                break
        found[str(route)] = made
        before.restore()
        client._cookies = dict(cookies)
        client.get("/api/session")
    assert found.keys() == ROUND_TRIPS.keys()
    allowed = {route: tuple(map(max, made, ROUND_TRIPS[route])) for route, made in found.items()}
    assert allowed == ROUND_TRIPS


def request_counted(
    client: FlaskClient, app: Flask, route: Route, request: dict[str, Any]
) -> tuple[int, int]:
    with counting(app) as made, client.open(route.path, method=route.method, **request) as response:
        pass
    assert response.status_code < 500, route
    return made.counts


@pytest.mark.parametrize("path", ["/api/session", "/api/user", "/api/spotify", "/v1/me/player"])
def test_round_trips_with_a_bearer_token(
    client: FlaskClient, app: Flask, sandbox: SandboxClient, path: str
) -> None:
    """The first two requests read the token and its account, and the first one records the use."""
    script = {"Authorization": f"Bearer {create_token(route_matrix.ada(client, sandbox))}"}
    made = []
    for _ in range(3):
        with counting(app) as each, app.test_client().get(path, headers=script) as response:
            assert response.status_code in (200, 204)
        made.append(each.counts)

    assert [sql for _, sql in made] == [8, 4, 0]
    assert made[-1] == (1, 0)
