"""The OAuth endpoints over HTTP: form bodies, errors in OAuth's format, and requests from other sites."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.auth.devices.flow import GRANT_TYPE
from tests.helpers.devices import device_client, oauth_error, start
from tests.helpers.flows import register, slug

START, TOKEN = "/api/oauth/device_authorization", "/api/oauth/token"
FORM = "application/x-www-form-urlencoded"
SPA = "http://127.0.0.1:5173"

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def device(app: Flask) -> FlaskClient:
    return device_client(app)


def test_invalid_start_is_rejected(device: FlaskClient) -> None:
    invalid: list[tuple[str | bytes, str]] = [
        ("client_name=my-cli", "invalid_scope"),
        ("client_name=my-cli&scope=", "invalid_scope"),
        ("client_name=my-cli&scope=++", "invalid_scope"),
        ("client_name=my-cli&scope=spotify:read+admin", "invalid_scope"),
        ("client_name=my-cli&scope=spotify:read,account:read", "invalid_scope"),
        ("client_name=my-cli&scope=spotify:read%0Aaccount:read", "invalid_scope"),
        ("client_name=my-cli&scope=Spotify:read", "invalid_scope"),
        ("scope=spotify:read", "invalid_request"),
        ("client_name=&scope=spotify:read", "invalid_request"),
        ("client_name=+++&scope=spotify:read", "invalid_request"),
        (f"client_name={'x' * 65}&scope=spotify:read", "invalid_request"),
        ("client_name=my%00cli&scope=spotify:read", "invalid_request"),
        ("client_name=my%0D%0Acli&scope=spotify:read", "invalid_request"),
        ("client_name=my%1B%5B31mcli&scope=spotify:read", "invalid_request"),
        ("client_name=%E2%80%AEilc-ym&scope=spotify:read", "invalid_request"),  # right-to-left override
        ("client_name=%E2%80%8B&scope=spotify:read", "invalid_request"),  # zero-width space
        ("client_name=%E3%85%A4&scope=spotify:read", "invalid_request"),  # Hangul filler
        ("client_name=%E2%A0%80+%E2%A0%80&scope=spotify:read", "invalid_request"),  # blank Braille patterns
        ("client_name=%FF&scope=spotify:read", "invalid_request"),
        ("client_name=a&client_name=b&scope=spotify:read", "invalid_request"),
        ("client_name=a&scope=spotify:read&scope=", "invalid_request"),
        ("client_name=a&scope=spotify:read&scope=spotify:read", "invalid_request"),
        (f"client_name=a&scope=spotify:read{'&x=y' * 100}", "invalid_request"),
        ("", "invalid_request"),
        (b"\xff=1", "invalid_request"),
    ]
    for body, expected in invalid:
        response = device.post(START, data=body, content_type=FORM)
        assert oauth_error(response) == expected, body
        # RFC 6749 section 5.2: no quotes, no backslashes, and ASCII only.
        assert set(response.json["error_description"]) <= set(map(chr, range(0x20, 0x7F))) - {'"', "\\"}


def test_invalid_poll_is_rejected(device: FlaskClient) -> None:
    invalid: list[tuple[dict[str, Any], str]] = [
        ({}, "invalid_request"),
        ({"device_code": "x"}, "invalid_request"),
        ({"grant_type": GRANT_TYPE}, "invalid_request"),
        ({"grant_type": GRANT_TYPE, "device_code": ""}, "invalid_request"),
        ({"grant_type": [GRANT_TYPE, GRANT_TYPE], "device_code": "x"}, "invalid_request"),
        ({"grant_type": GRANT_TYPE, "device_code": ["x", "y"]}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "unsupported_grant_type"),
        ({"grant_type": GRANT_TYPE, "device_code": "x"}, "invalid_grant"),
        ({"grant_type": GRANT_TYPE, "device_code": "é\0" * 5000}, "invalid_grant"),
    ]
    for form, expected in invalid:
        assert oauth_error(device.post(TOKEN, data=form)) == expected, form


def test_only_form_bodies_are_accepted(device: FlaskClient) -> None:
    form = {"client_name": "my-cli", "scope": "spotify:read"}
    bodies: list[dict[str, Any]] = [
        {"json": form},
        {"data": form, "content_type": "multipart/form-data"},
        {"data": "client_name=my-cli&scope=spotify:read", "content_type": "text/plain"},
        {"query_string": form},
    ]
    for path, body in product((START, TOKEN), bodies):
        assert oauth_error(device.post(path, **body)) == "invalid_request", (path, body)


def test_unknown_parameters_are_ignored_even_if_repeated(device: FlaskClient) -> None:
    body = "client_id=x&client_secret=&resource=a&resource=b&client_name=my+cli&scope=spotify:read"

    response = device.post(f"{START}?scope=admin", data=body, content_type=f"{FORM}; charset=UTF-8")

    assert response.status_code == 200


def test_responses_must_not_be_stored_and_have_nothing_to_do_with_cookies(
    device: FlaskClient, client: FlaskClient
) -> None:
    register(client, "ada")
    cookie = client.get_cookie("backline_session")
    assert cookie is not None
    sent = {"Cookie": f"backline_session={cookie.value}", "Authorization": "Basic bXktY2xpOg=="}
    for path, form in ((START, {"client_name": "x", "scope": "spotify:read"}), (START, {}), (TOKEN, {})):
        response = device.post(path, data=form, headers=sent)
        assert response.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in response.headers
        assert "Cookie" not in response.vary


def test_body_of_more_than_64_kib_is_rejected(device: FlaskClient) -> None:
    response = device.post(START, data={"client_name": "x" * 65_536, "scope": "spotify:read"})

    assert (response.status_code, response.json["error"]) == (413, "invalid_request")


@pytest.mark.settings(REDIS_URL="redis://127.0.0.1:1/0")
def test_outage_of_redis_is_temporary(device: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    form = {"client_name": "x", "scope": "spotify:read", "grant_type": GRANT_TYPE, "device_code": "x"}
    for path in (START, TOKEN):
        response = device.post(path, data=form)
        assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
        assert response.content_type == "application/json"
        assert int(response.headers["Retry-After"]) > 0
    assert [record.message for record in caplog.records] == ["dependency_unavailable"] * 2


def test_unexpected_error_is_logged_and_reveals_nothing(
    device: FlaskClient, app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.extensions["backline"].device_flow, "redeem", lambda _: 1 / 0)

    response = device.post(TOKEN, data={"grant_type": GRANT_TYPE, "device_code": "x"})

    assert (response.status_code, response.json["error"]) == (500, "server_error")
    assert "zero" not in response.text
    assert [record.message for record in caplog.records] == ["request_failed"]


def test_no_page_of_another_site_can_start_an_authorization(device: FlaskClient) -> None:
    """Otherwise, the person would see their own address next to an attacker's code."""
    form = {"client_name": "x", "scope": "spotify:read"}
    allowed: list[dict[str, str]] = [{}, {"Origin": SPA}]
    for headers in allowed:
        assert device.post(START, data=form, headers=headers).status_code == 200
        assert device.post(TOKEN, data=form, headers=headers).status_code == 400
    rejected = [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.test", "X-Requested-With": "x"},
    ]
    for path, headers in product((START, TOKEN), rejected):
        response = device.post(path, data=form, headers=headers)
        assert (response.status_code, slug(response)) == (403, "cross-site-request"), (path, headers)


def test_other_routes_still_need_the_header_of_the_app(client: FlaskClient) -> None:
    register(client, "ada")
    started = start(client)
    client.environ_base.pop("HTTP_X_REQUESTED_WITH")

    response = client.post(f"/api/user/devices/{started['user_code']}", json={"decision": "deny"})

    assert (response.status_code, slug(response)) == (403, "cross-site-request")
    assert client.get(f"/api/user/devices/{started['user_code']}").status_code == 200


def test_only_post_is_allowed(device: FlaskClient) -> None:
    calls: list[Callable[..., Any]] = [device.get, device.put, device.delete]
    for path, call in product((START, TOKEN), calls):
        response = call(path, headers={"X-Requested-With": "x"})
        assert (response.status_code, sorted(response.allow)) == (405, ["OPTIONS", "POST"])
