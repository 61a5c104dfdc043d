"""Cross-site requests: which origins may write, and which may read the response."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse, create_environ, run_wsgi_app

from app.web.access import public
from tests.conftest import MakeApp
from tests.helpers.flows import PASSWORD, register, slug, start_authorization
from tests.helpers.route_matrix import (
    SAFE,
    Route,
    Snapshot,
    ada,
    documented,
    every_route,
    send,
    valid_body,
    valid_request,
    wait_for_background_work,
    writing_routes,
)
from tests.helpers.sandbox_client import SandboxClient

SPA = "http://127.0.0.1:5173"
# The credentials in the OpenAPI document's example.
EXAMPLE_APP: dict[str, Any] = {
    "client_id": "clientIdFromTheDashboard",
    "client_secret": "clientSecretFromTheDashboard",
}
NEW = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}

FOREIGN = [
    "null",
    "NULL",
    "*",
    "http://127.0.0.1:5174",
    "http://127.0.0.1:51730",
    "http://127.0.0.1:05173",
    "http://127.0.0.1",
    "https://127.0.0.1:5173",
    "HTTP://127.0.0.1:5173",
    "file://127.0.0.1:5173",
    "//127.0.0.1:5173",
    "127.0.0.1:5173",
    "http://localhost:5173",
    "http://127.0.0.1:5173/",
    "http://127.0.0.1:5173.",
    "http://127.0.0.1.:5173",
    "http://127.0.0.1:5173.evil.test",
    "http://evil.test.127.0.0.1:5173",
    "http://evil.test",
    "http://evil.test:5173",
    "http://127.0.0.1:5173@evil.test",
    "http://user:pw@127.0.0.1:5173",
    "http://127.0.0.1:5173,http://evil.test",
    "HTTP://127.0.0.1:5173 http://evil.test",
    "http://127.0.0.1:5173\t",
    "http://[::ffff:127.0.0.1]:5173",
    "http://127.1:5173",
    "http://2130706433:5173",
    "",
]
# The same for a listed host name: IDN look-alikes, subdomains, parent domains, and dots as wildcards.
APP = "https://app.example.com"
FOREIGN_ORIGINS = [
    "https://example.com",
    "https://com",
    "https://evil.app.example.com",
    "https://evilapp.example.com",
    "https://app.example.com.evil.test",
    "https://app-example.com",
    "https://appxexample.com",
    "https://app.example.com.",
    "https://app.example.com/",
    "https://app.example.com:443",
    "https://app.example.com:8443",
    "http://app.example.com",
    "https://APP.example.com",
    "https://app.example.co",
    "https://app.exampl\u0435.com".encode().decode("latin-1"),
    "https://app.xn--exampl-dsg.com",
    "https://app\uff0eexample\uff0ecom".encode().decode("latin-1"),
    "https://app%2eexample.com",
    "https://app.example.com\x00.evil.test",
    "https://app.example.com#evil",
    "https://app.example.com?evil",
    "https://app.example.com\\evil.test",
    "https://user@app.example.com",
]

# The kind of database makes no difference here.
pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.slow,
]


def post(client: FlaskClient, headers: list[tuple[str, str]]) -> Any:
    """Register with exactly these headers, as far as the test client allows."""
    client.environ_base.pop("HTTP_X_REQUESTED_WITH", None)
    return client.post("/api/register", json=NEW, headers=headers)


@pytest.mark.requirement("C1")
def test_foreign_origin_may_neither_write_nor_read(client: FlaskClient) -> None:
    for origin in FOREIGN:
        response = post(client, [("X-Requested-With", "x"), ("Origin", origin)])
        assert (response.status_code, slug(response)) == (403, "cross-site-request"), origin
        assert cors_headers(response) == [], origin
        simple = client.get("/api/session", headers={"Origin": origin})
        assert cors_headers(simple) == [], origin
        assert simple.json["authenticated"] is False


def test_write_that_fails_a_check_is_rejected(client: FlaskClient) -> None:
    failing: list[list[tuple[str, str]]] = [
        [],
        [("X-Requested-With", "")],
        [("X-Requested-With", "  ")],
        [("Origin", SPA)],
        [("X-Requested-With", "x"), ("Sec-Fetch-Site", "cross-site")],
    ]
    for headers in failing:
        response = post(client, headers)
        assert (response.status_code, slug(response)) == (403, "cross-site-request"), headers
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
def test_pages_of_the_app_may_write(client: FlaskClient, headers: list[tuple[str, str]]) -> None:
    assert post(client, headers).status_code == 201


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("xn--bcher-kva.example", "http://xn--bcher-kva.example", 201),
        ("xn--bcher-kva.example", "http://bücher.example", 403),
        ("127.0.0.1:5000", "http://127.0.0.1:5000", 201),
        ("127.0.0.1:80", "http://127.0.0.1", 201),
    ],
)
def test_own_origin_is_the_host_header_as_sent(
    client: FlaskClient, host: str, origin: str, status: int
) -> None:
    assert post(client, [("X-Requested-With", "x"), ("Host", host), ("Origin", origin)]).status_code == status


def test_malformed_host_is_rejected(app: Flask) -> None:
    for host in ("xn--", "xn--a-\xff", "a..b", "a b", "[::1", "a:b:c", ""):
        headers = {"Host": host, "X-Requested-With": "x", "Origin": SPA + "0"}
        environ = create_environ("/api/logout", method="POST", headers=headers)
        _, status, _ = run_wsgi_app(app, environ)  # the test client rejects such a host itself
        assert status in ("400 BAD REQUEST", "403 FORBIDDEN"), host


@pytest.mark.settings(CORS_ORIGINS="http://[::1]:5173")
def test_origin_with_brackets_is_not_a_pattern(client: FlaskClient) -> None:

    for origin in ("http://1:5173", "http://::5173", "http://1:51739", "HTTP://[::1]:5173"):
        response = client.get("/api/session", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in response.headers, origin
    response = client.get("/api/session", headers={"Origin": "http://[::1]:5173"})
    assert response.headers["Access-Control-Allow-Origin"] == "http://[::1]:5173"


PUBLIC_KEYS = "/.well-known/jwks.json"
TOKEN_READS = ("/api/spotify/v1/me/player", "/api/spotify/token")
# What browsers send when a page on another site navigates or embeds.
NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
IMAGE_ELEMENT = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}


def test_other_sites_can_neither_open_nor_embed_reads(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    linked = {"/api/spotify/authorize", "/api/openapi.json", "/api/docs", "/api/docs/start.js"}
    reads = {route.path for route in every_route(app) if route.method == "GET" and not route.is_bearer_only}
    for path, sent, site in itertools.product(
        sorted(reads),
        (NAVIGATION, IMAGE_ELEMENT, {**NAVIGATION, "Origin": SPA}, {}),
        ("cross-site", "same-site"),
    ):
        for method in ("GET", "HEAD"):
            response = client.open(path, method=method, headers={**sent, "Sec-Fetch-Site": site})
            where = (method, path, sent, site)
            if path in linked or path.startswith("/api/docs/") or not path.startswith("/api/"):
                assert response.status_code < 400 or path == "/api/spotify/authorize", where
            else:
                assert response.status_code == 403, where
            response.close()


def test_reads_work_from_the_address_bar_and_from_pages_of_the_app(
    client: FlaskClient, sandbox: SandboxClient
) -> None:
    ada(client, sandbox)
    for path in ("/api/session", "/api/user/export", *TOKEN_READS):
        for headers in (
            {**NAVIGATION, "Sec-Fetch-Site": "none"},
            {**NAVIGATION, "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Origin": SPA},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": SPA},
            {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
            {},
            *([] if path.startswith("/api/spotify/v1/") else [{"X-Requested-With": ""}]),
        ):
            assert client.get(path, headers=headers).status_code in (200, 204), (path, headers)


@pytest.mark.parametrize("path", TOKEN_READS)
def test_read_with_a_token_that_fails_a_check_is_rejected(
    client: FlaskClient, sandbox: SandboxClient, path: str
) -> None:
    ada(client, sandbox)
    without_header: list[dict[str, str]] = [{"X-Requested-With": ""}, {"X-Requested-With": "", "Origin": SPA}]
    for headers in (
        *(without_header if path.startswith("/api/spotify/v1/") else []),
        {"Origin": "http://evil.test"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
        {"Origin": SPA, "Sec-Fetch-Site": "cross-site", **NAVIGATION},
        {"Origin": SPA, "Sec-Fetch-Site": "cross-site", **IMAGE_ELEMENT},
    ):
        response = client.get(path, headers=headers)
        assert (response.status_code, slug(response)) == (403, "cross-site-request"), headers


def preflight(client: FlaskClient, origin: str) -> Any:
    return client.options(
        "/api/login",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-requested-with",
        },
    )


def test_preflight_from_the_app_is_allowed(client: FlaskClient) -> None:
    response = preflight(client, SPA)

    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == SPA
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    allowed = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
    assert allowed == {"content-type", "x-requested-with"}
    assert 0 < int(response.headers["Access-Control-Max-Age"]) <= 7200


@pytest.mark.settings(CORS_ALLOW_HEADERS="tracestate, X-App.Version")
def test_preflight_allows_headers_for_tracing_and_from_settings(client: FlaskClient) -> None:
    expected = ["baggage", "sentry-trace", "traceparent", "tracestate", "x-app.version"]
    for name in [*expected, "X-App-Version", "x-appxversion", "cookie", "x-evil"]:
        calls = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": name}
        response = client.options("/api/user/password", headers={"Origin": SPA, **calls})
        allowed = response.headers.get("Access-Control-Allow-Headers", "").lower()
        assert (allowed == name) is (name in expected), name


@pytest.mark.parametrize("origin", ["capacitor://localhost", "http://tauri.localhost"])
def test_app_in_a_native_shell_may_write_and_read(make_app: MakeApp, origin: str) -> None:
    app = make_app(CORS_ORIGINS=f"{origin},chrome-extension://abcdefghijklmnop")
    for sent, status in ((origin, 204), (f"{origin}.evil.test", 403), (f"{origin}:81", 403)):
        headers = {"Origin": sent, "Sec-Fetch-Site": "cross-site"}
        response = app.test_client().post("/api/logout", headers=headers)
        assert response.status_code == status, sent
        assert response.headers.get("Access-Control-Allow-Origin") == (sent if status == 204 else None)
    assert preflight(app.test_client(), origin).headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.requirement("C1")
def test_preflight_from_a_foreign_origin_is_not_allowed(client: FlaskClient) -> None:
    for origin in FOREIGN:
        assert cors_headers(preflight(client, origin)) == [], origin


# --- C1 to C7, on every route ------------------------------------------------------


def cors_headers(response: TestResponse) -> list[str]:
    """Return the CORS headers of a response. There are none for an origin that may not read it."""
    return [f"{name}: {value}" for name, value in response.headers if name.startswith("Access-Control-")]


@pytest.mark.requirement("C1")
@pytest.mark.settings(CORS_ORIGINS=f"{APP},{SPA}")
def test_origin_similar_to_a_listed_one_is_foreign(client: FlaskClient) -> None:
    for origin in FOREIGN_ORIGINS:
        assert cors_headers(client.get("/api/session", headers={"Origin": origin})) == [], origin
        assert cors_headers(preflight(client, origin)) == [], origin
        rejected = post(client, [("X-Requested-With", "x"), ("Origin", origin)])
        assert slug(rejected) == "cross-site-request", origin
    for origin in (APP, SPA):
        assert cors_headers(client.get("/api/session", headers={"Origin": origin})) != []
        assert cors_headers(preflight(client, origin)) != []


@pytest.mark.requirement("C1")
def test_request_with_two_origins_is_rejected(client: FlaskClient) -> None:
    for origins in ((SPA, "http://evil.test"), ("http://evil.test", SPA), (SPA, SPA), ("null", SPA)):
        headers = [("Origin", origin) for origin in origins]
        assert cors_headers(client.get("/api/session", headers=headers)) == [], origins
        assert slug(post(client, [("X-Requested-With", "x"), *headers])) == "cross-site-request", origins


@pytest.mark.requirement("C1")
def test_no_route_allows_a_foreign_origin(client: FlaskClient, app: Flask) -> None:
    responses = {
        (str(route), method, origin): cors_headers(
            client.open(route.path, method=method, headers=headers, buffered=True)
        )
        for route in every_route(app)
        for origin in ("null", "http://evil.test", f"{SPA}.evil.test")
        for method, headers in (
            (route.method, {"Origin": origin}),
            ("OPTIONS", {"Origin": origin, "Access-Control-Request-Method": route.method}),
        )
    }

    with_headers = {route for (route, method, _), found in responses.items() if found and method != "OPTIONS"}
    assert with_headers == {f"GET {PUBLIC_KEYS}"}
    assert not any(found for (_, method, _), found in responses.items() if method == "OPTIONS")


@pytest.mark.requirement("C2")
def test_every_response_has_each_cors_header_once(client: FlaskClient, app: Flask) -> None:
    """Except for that of the public keys, which any origin may read: tests/auth/test_jwt.py."""
    paths = {route.path for route in every_route(app)} | {"/api/nothing", "/api/", "/api/user/", "/v1/"}
    paths.remove(PUBLIC_KEYS)
    for path, method in itertools.product(sorted(paths), (*sorted(SAFE), "POST", "DELETE", "TRACE")):
        for origin in (None, "http://evil.test", SPA):
            response = client.open(
                path, method=method, headers={"Origin": origin} if origin else {}, buffered=True
            )
            where, headers = (method, path, origin), response.headers
            public = path.startswith(("/api/", "/v1/"))
            assert ("Origin" in response.vary) is public, where
            if origin == SPA and public:
                assert headers.getlist("Access-Control-Allow-Origin") == [SPA], where
                assert headers.getlist("Access-Control-Allow-Credentials") == ["true"], where
                [exposed] = headers.getlist("Access-Control-Expose-Headers")
                assert "X-Request-ID" in exposed, where
            else:
                assert cors_headers(response) == [], where


ALLOWED = {"accept-language", "authorization", "content-type", "if-none-match", "x-requested-with"}


@pytest.mark.requirement("C3")
def test_preflight_allows_only_the_methods_of_the_route_and_known_headers(
    client: FlaskClient, app: Flask
) -> None:
    own: dict[str, set[str]] = {}
    for route in every_route(app):
        own.setdefault(route.path, set()).add(route.method)
    for path, method in itertools.product(own, ("GET", "POST", "PUT", "PATCH", "DELETE")):
        calls = {
            "Origin": SPA,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": f"{', '.join(sorted(ALLOWED))}, cookie, range, x-evil",
        }
        response = client.options(path, headers=calls)
        if not path.startswith(("/api/", "/v1/")):
            assert cors_headers(response) == [], path
            continue
        assert set(response.headers["Access-Control-Allow-Methods"].split(", ")) == own[path], path
        allowed = response.headers["Access-Control-Allow-Headers"].lower()
        assert set(allowed.split(", ")) == ALLOWED, path
        assert 0 < int(response.headers["Access-Control-Max-Age"]) <= 7200, path
        assert "*" not in "".join(cors_headers(response)), path


@pytest.mark.requirement("C3")
def test_preflight_for_an_unknown_path_allows_nothing(client: FlaskClient) -> None:
    response = client.options(
        "/api/nothing", headers={"Origin": SPA, "Access-Control-Request-Method": "DELETE"}
    )

    assert response.status_code == 404
    assert "Access-Control-Allow-Methods" not in response.headers


BODIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "urlencoded": lambda body: {"data": body},
    "multipart": lambda body: {"data": body, "content_type": "multipart/form-data"},
    "text": lambda body: {"data": json.dumps(body), "content_type": "text/plain"},
    "none": lambda _: {},
    "json": lambda body: {"json": body},
}


def header_combinations(route: Route) -> Iterator[tuple[dict[str, str], bool]]:
    """Combinations of the headers that show a request's origin, and whether the route accepts each."""
    for origin, header, site in itertools.product(
        (None, "http://evil.test", "null", SPA), (None, "XMLHttpRequest"), (None, "cross-site", "same-origin")
    ):
        headers = {"Origin": origin, "X-Requested-With": header, "Sec-Fetch-Site": site}
        has_header = header is not None or route.is_oauth
        foreign = origin not in (None, SPA) or (site == "cross-site" and origin is None)
        yield {name: value for name, value in headers.items() if value}, has_header and not foreign


@pytest.mark.requirement("C4")
def test_cross_site_write_is_rejected_without_effect_on_every_route(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    document = documented(app)
    ada(client, sandbox).environ_base.pop("HTTP_X_REQUESTED_WITH")
    before = Snapshot(app)
    for route in writing_routes(app):
        if route.is_bearer_only:
            continue  # cookies have no effect
        good = valid_body(document, route) or {"a": "b"}
        for kind, (headers, ours) in itertools.product(BODIES, header_combinations(route)):
            if not ours:
                response = send(client, route, headers=headers, **BODIES[kind](good))
                where = (str(route), kind, headers)
                assert (response.status_code, slug(response)) == (403, "cross-site-request"), where
        wait_for_background_work(app)
        assert Snapshot(app) == before, route


@pytest.mark.requirement("C4")
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X-Requested-With": ""}, "X-Requested-With"),
        ({"Origin": "http://evil.test"}, "Origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "Sec-Fetch-Site"),
    ],
)
def test_log_names_the_header_for_which_a_request_was_rejected(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, headers: dict[str, str], reason: str
) -> None:
    client.post("/api/logout", headers=headers)

    [record] = [record for record in caplog.records if record.message == "cross_site_request_rejected"]
    assert vars(record)["reason"] == reason


@pytest.mark.requirement("C4")
def test_writes_from_the_app_are_not_rejected_as_cross_site(client: FlaskClient, app: Flask) -> None:
    client.environ_base.pop("HTTP_X_REQUESTED_WITH")
    for route in writing_routes(app):
        for kind, (headers, ours) in itertools.product(BODIES, header_combinations(route)):
            if ours:
                response = send(client, route, headers=headers, **BODIES[kind]({}))
                expected = (400,) if route.is_oauth else (204, 401, 409, 415, 422)
                assert response.status_code in expected, (str(route), kind, headers)


@pytest.mark.requirement("C4")
@pytest.mark.settings(SPOTIFY_APPS="both")
def test_same_requests_from_the_app_take_effect(
    client: FlaskClient, app: Flask, sandbox: SandboxClient
) -> None:
    """Otherwise, the two tests above would prove nothing."""
    document = documented(app)
    ada(client, sandbox)
    sandbox.create_applications(**EXAMPLE_APP)
    before = Snapshot(app)
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    for route in writing_routes(app):
        if route.is_gateway or "{user_code}" in route.template:
            continue  # the effect is at Spotify; there is no such device
        client.set_cookie("backline_session", cookie.value)
        response = send(client, route, headers={"Origin": SPA}, **valid_request(document, route))
        wait_for_background_work(app)
        if response.status_code == 400:  # the document's example is not a real token
            assert route.is_oauth or slug(response) == "invalid-token", route
        else:
            assert 200 <= response.status_code < 300, (route, response.text)
            without_effect = (
                "/api/session/jwt",
                f"/api/user/sessions/{'0' * 32}",
                "/api/user/tokens/999",
            )
            if route.path not in without_effect and str(route) != "DELETE /api/spotify/app":
                assert Snapshot(app) != before, route
        before.restore()


@pytest.mark.requirement("C5")
def test_safe_methods_change_nothing(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    ada(client, sandbox)
    before = Snapshot(app)
    for route in every_route(app):
        for method, override in itertools.product(sorted(SAFE), ("DELETE", "POST", "PUT")):
            response = client.open(
                route.path,
                method=method,
                query_string={"_method": override, "method": override},
                headers=dict.fromkeys(OVERRIDES, override),
            )
            assert response.status_code < 500, (route, method)
            response.close()
        assert Snapshot(app) == before, route


OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")


@pytest.mark.requirement("C5")
def test_method_override_headers_are_ignored(client: FlaskClient, app: Flask, sandbox: SandboxClient) -> None:
    ada(client, sandbox)
    before = Snapshot(app)

    responses = [
        client.post(
            "/api/user",
            query_string={"_method": "DELETE"},
            headers=dict.fromkeys(OVERRIDES, "DELETE"),
            **BODIES[kind]({"_method": "DELETE", "password": PASSWORD}),
        )
        for kind in BODIES
    ]

    for response in responses:
        assert (response.status_code, "DELETE" in response.allow) == (405, True)
    assert Snapshot(app) == before


@pytest.mark.requirement("C6")
def test_forms_on_other_sites_cannot_change_sessions_or_connections(
    client: FlaskClient, new_client: Callable[[], FlaskClient], sandbox: SandboxClient
) -> None:
    register(new_client(), "eve")
    ada(client, sandbox).environ_base.pop("HTTP_X_REQUESTED_WITH")
    cross_site = {"Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}

    routes = (("POST", "/api/login"), ("POST", "/api/logout"), ("DELETE", "/api/spotify"))
    for form, (method, path) in itertools.product(("urlencoded", "multipart", "text", "none"), routes):
        credentials = BODIES[form]({"login": "eve", "password": PASSWORD})
        rejected = client.open(path, method=method, headers=cross_site, **credentials)
        assert (rejected.status_code, slug(rejected)) == (403, "cross-site-request")
        assert "Set-Cookie" not in rejected.headers

    seen = client.get("/api/session").json
    assert (seen["user"]["username"], seen["spotify"]["status"]) == ("ada", "connected")


@pytest.mark.requirement("C6")
def test_links_on_other_sites_cannot_connect_an_attackers_spotify_account(
    client: FlaskClient, new_client: Callable[[], FlaskClient], sandbox: SandboxClient
) -> None:
    register(client, "ada")
    callback = sandbox.consent(start_authorization(new_client()), person="mira_t_42")

    response = client.get(callback, headers={"Sec-Fetch-Site": "cross-site"})

    assert (response.status_code, slug(response)) == (400, "spotify-state-mismatch")
    assert client.get("/api/spotify").json == {"status": "not_connected"}


def failing(app: Flask) -> None:
    @app.get("/api/fails")
    @public
    def fails() -> str:
        raise ZeroDivisionError


@pytest.mark.requirement("C7")
def test_app_can_read_every_kind_of_error(client: FlaskClient, app: Flask) -> None:
    failing(app)
    register(client, "ada")
    errors: dict[int, tuple[str, str, dict[str, Any]]] = {
        400: ("POST", "/api/login", {"data": "{", "content_type": "application/json"}),
        401: ("POST", "/api/login", {"json": {"login": "ada", "password": "not it"}}),
        403: ("POST", "/api/logout", {"headers": {"X-Requested-With": ""}}),
        404: ("GET", "/api/nothing", {}),
        405: ("PUT", "/api/login", {}),
        409: ("GET", "/api/spotify/token", {}),
        413: ("POST", "/api/login", {"data": " " * 65_537, "content_type": "application/json"}),
        415: ("POST", "/api/login", {"data": "login=ada"}),
        422: ("POST", "/api/login", {"json": {}}),
        500: ("GET", "/api/fails", {}),
    }
    for status, (method, path, sent) in errors.items():
        response = client.open(
            path, method=method, **{**sent, "headers": {"Origin": SPA, **sent.get("headers", {})}}
        )
        assert_readable(response, status)
    responses = [
        client.post("/api/login", json={"login": "ada", "password": "no"}, headers={"Origin": SPA})
        for _ in range(12)
    ]
    assert_readable(responses[-1], 429)


@pytest.mark.requirement("C7")
@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_app_can_read_a_503(client: FlaskClient) -> None:

    assert_readable(
        client.post("/api/login", json={"login": "a", "password": "b"}, headers={"Origin": SPA}), 503
    )


def assert_readable(response: TestResponse, status: int) -> None:
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    assert response.headers.getlist("Access-Control-Allow-Origin") == [SPA]
    assert response.headers.getlist("Access-Control-Allow-Credentials") == ["true"]
    exposed = set(response.headers["Access-Control-Expose-Headers"].split(", "))
    assert {"Retry-After", "X-Request-ID"} <= exposed
    assert "Origin" in response.vary
