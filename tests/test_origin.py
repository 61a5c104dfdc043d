"""The browser's border: who may write, and who may read the answer."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.journeys import PASSWORD, slug

SPA = "http://127.0.0.1:5173"
NEW = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}

FOREIGN = [
    "null",
    "http://127.0.0.1:5174",
    "https://127.0.0.1:5173",
    "http://localhost:5173",
    "http://127.0.0.1:5173/",
    "http://127.0.0.1:5173.evil.test",
    "http://evil.test",
    "http://evil.test:5173",
    "http://127.0.0.1:51730",
    "HTTP://127.0.0.1:5173 http://evil.test",
    "",
]


def post(client: FlaskClient, headers: list[tuple[str, str]]) -> Any:
    """Register with exactly these headers, as far as a test client can be made to."""
    client.environ_base.pop("HTTP_X_REQUESTED_WITH", None)
    return client.post("/api/register", json=NEW, headers=headers)


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_origin_may_neither_write_nor_read(client: FlaskClient, origin: str) -> None:
    response = post(client, [("X-Requested-With", "x"), ("Origin", origin)])

    assert (response.status_code, slug(response)) == (403, "cross-site-request")
    assert "Access-Control-Allow-Origin" not in response.headers
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert client.get("/api/session").json["authenticated"] is False


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Requested-With", "")],
        [("X-Requested-With", "  ")],
        [("Origin", SPA)],
        [("X-Requested-With", "x"), ("Sec-Fetch-Site", "cross-site")],
    ],
)
def test_a_write_without_the_signs_of_our_own_app_is_refused(
    client: FlaskClient, headers: list[tuple[str, str]]
) -> None:
    response = post(client, headers)

    assert (response.status_code, slug(response)) == (403, "cross-site-request")
    assert client.get("/api/session").json["authenticated"] is False


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Requested-With", "x")],
        [("X-Requested-With", "x"), ("Origin", SPA)],
        [("X-Requested-With", "x"), ("Origin", SPA), ("Sec-Fetch-Site", "same-site")],
        [("X-Requested-With", "x"), ("Origin", SPA), ("Sec-Fetch-Site", "cross-site")],
        [("X-Requested-With", "x"), ("Origin", "http://localhost"), ("Sec-Fetch-Site", "same-origin")],
    ],
    ids=["no browser", "listed", "same site", "cross-site but listed", "docs page"],
)
def test_our_own_pages_may_write(client: FlaskClient, headers: list[tuple[str, str]]) -> None:
    assert post(client, headers).status_code == 201


def test_an_origin_with_brackets_is_no_pattern(env: dict[str, str], request: pytest.FixtureRequest) -> None:
    env["CORS_ORIGINS"] = "http://[::1]:5173"
    client = request.getfixturevalue("client")

    for origin in ("http://1:5173", "http://::5173", "http://1:51739", "HTTP://[::1]:5173"):
        response = client.get("/api/session", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in response.headers, origin
    response = client.get("/api/session", headers={"Origin": "http://[::1]:5173"})
    assert response.headers["Access-Control-Allow-Origin"] == "http://[::1]:5173"


def test_every_route_that_changes_something_is_guarded(client: FlaskClient) -> None:
    client.environ_base.pop("HTTP_X_REQUESTED_WITH", None)
    checked = 0
    for rule in client.application.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}):
            path = rule.rule.replace("<", "").replace(">", "")
            response = client.open(path, method=method, json={})
            assert (response.status_code, slug(response)) == (403, "cross-site-request"), (method, path)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("path", ["/api/session", "/api/user", "/api/nothing"])
def test_the_app_may_read_answers_and_errors_with_credentials(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers={"Origin": SPA})

    assert response.headers.getlist("Access-Control-Allow-Origin") == [SPA]
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in response.vary
    assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]


def test_without_an_origin_nothing_is_allowed_and_caches_are_told(client: FlaskClient) -> None:
    response = client.get("/api/session")

    assert "Access-Control-Allow-Origin" not in response.headers
    assert "Origin" in response.vary


def preflight(client: FlaskClient, origin: str) -> Any:
    return client.options(
        "/api/login",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-requested-with",
        },
    )


def test_a_preflight_from_our_app_is_answered(client: FlaskClient) -> None:
    response = preflight(client, SPA)

    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == SPA
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    allowed = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
    assert allowed == {"content-type", "x-requested-with"}
    assert 0 < int(response.headers["Access-Control-Max-Age"]) <= 7200


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_preflight_from_elsewhere_is_not(client: FlaskClient, origin: str) -> None:
    response = preflight(client, origin)

    assert "Access-Control-Allow-Origin" not in response.headers
    assert "Access-Control-Allow-Credentials" not in response.headers
